//! Netfilter over its own netlink protocol: rules (nf_tables) and connections (ctnetlink).
//!
//! ```text
//!   Ruleset ── diff ──> changes ── encode ──> one batch ── socket ──> kernel, all or nothing
//! ```
//! Everything but [`Netfilter`] is pure. The numbers are those of the kernel's headers
//! `linux/netfilter/nf_tables.h`, `nfnetlink.h` and `nfnetlink_conntrack.h`, which are stable.
//! What a rule or set *means* for machines is decided in `crate::firewall`.

mod conntrack;
mod diff;
mod encode;
mod expression;
mod log;
mod ruleset;
mod socket;
mod wire;

pub(crate) use conntrack::{Flow, Tuple};
pub(crate) use diff::{Change, diff, replace};
pub(crate) use encode::log_limit;
pub(crate) use expression::{Expression, Field, Key, NatKind, Verdict};
pub(crate) use log::{Logged, bind_log, parse_log};
pub(crate) use ruleset::{
    Chain, DataKind, Devices, Element, Family, Hook, HookPoint, KeyField, Learning, Limit, Policy,
    RuleText, Ruleset, Set, Table,
};
pub(crate) use socket::{GROUP_RULES, Netfilter, RuleCounter};
