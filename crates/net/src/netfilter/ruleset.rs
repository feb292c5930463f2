//! Tables with their sets, chains and limits, as values.

use super::expression::{Expression, Verdict};
use std::collections::BTreeMap;

/// Everything of ours in one namespace, by family and name.
pub(crate) type Ruleset = BTreeMap<(Family, String), Table>;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    Inet,
    Ipv4,
    /// What comes in or goes out by an interface, before and after everything else.
    Device,
    Bridge,
}

impl Family {
    /// `NFPROTO_*`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Device => 5,
            Self::Bridge => 7,
        }
    }
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) limits: BTreeMap<String, Limit>,
    pub(crate) chains: BTreeMap<String, Chain>,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    /// What a key consists of, in this order.
    pub(crate) key: Vec<KeyField>,
    pub(crate) data: DataKind,
    pub(crate) elements: BTreeMap<Vec<u8>, Element>,
    /// Rules add elements by themselves; nothing else does.
    pub(crate) learns: Option<Learning>,
}

/// How a set is filled by rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Learning {
    /// How long an element stays, in milliseconds; `None`: as long as what is counted of it is there.
    pub(crate) stays_ms: Option<u64>,
    /// Elements at most; what comes beyond is not learned.
    pub(crate) elements_max: u32,
}

impl Set {
    pub(crate) fn new(key: &[KeyField], data: DataKind) -> Self {
        Self { key: key.to_vec(), data, elements: BTreeMap::new(), learns: None }
    }

    /// A set that rules fill.
    pub(crate) fn learning(key: &[KeyField], data: DataKind, learning: Learning) -> Self {
        Self { learns: Some(learning), ..Self::new(key, data) }
    }

    /// Whether both are the same but for their elements.
    pub(super) fn same_kind(&self, other: &Self) -> bool {
        self.key == other.key && self.data == other.data && self.learns == other.learns
    }

    /// Adds an element.
    ///
    /// # Panics
    /// If the fields are not those of the key.
    pub(crate) fn insert(&mut self, fields: &[&[u8]], element: Element) {
        assert_eq!(fields.len(), self.key.len(), "the fields of a key");
        let mut key = Vec::new();
        for (field, kind) in fields.iter().zip(&self.key) {
            assert!(field.len() <= kind.bytes(), "a field of a key");
            key.extend_from_slice(field);
            let fill = kind.padded() - field.len();
            key.extend(std::iter::repeat_n(0, fill));
        }
        self.elements.insert(key, element);
    }
}

/// One field of a key. The numbers are those by which the `nft` tool shows elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyField {
    Ip4,
    Ip6,
    Mac,
    Protocol,
    Port,
    InterfaceName,
    InterfaceIndex,
    Number,
    /// Bytes that are compared as a whole.
    Bytes(u8),
}

impl KeyField {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Ip4 | Self::Number | Self::InterfaceIndex => 4,
            Self::Bytes(count) => usize::from(count),
            Self::Ip6 | Self::InterfaceName => 16,
            Self::Mac => 6,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// Each field begins in a register of its own.
    pub(super) fn padded(self) -> usize {
        self.bytes().next_multiple_of(4)
    }

    pub(super) fn number(self) -> u32 {
        match self {
            Self::Number | Self::Bytes(_) => 4,
            Self::Ip4 => 7,
            Self::Ip6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::InterfaceIndex => 20,
            Self::InterfaceName => 41,
        }
    }
}

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DataKind {
    /// Nothing: a set.
    None,
    Verdict,
    Fields(Vec<KeyField>),
    /// A limit.
    Limit,
}

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element {
    Present,
    Verdict(Verdict),
    /// Fields one behind the other, each filled up to four bytes.
    Value(Vec<u8>),
    /// The name of a limit.
    Limit(String),
}

/// A limit with a state of its own. It matches what is over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Packets { per_second: u64, burst: u32 },
    Bytes { per_second: u64, burst: u32 },
}

/// A chain of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// `None`: only entered from other chains.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<RuleText>,
}

/// Where a chain begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) point: HookPoint,
    /// Lower comes first.
    pub(crate) priority: i32,
    pub(crate) policy: Policy,
    /// Whether it translates addresses.
    pub(crate) is_nat: bool,
    /// Whose packets, in the family of devices; of all others it is empty.
    pub(crate) devices: Vec<Devices>,
}

/// Interfaces that a chain is for, whether they are there yet or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The one with this name.
    Named(&'static str),
    /// Those whose names begin so (Linux 6.17).
    Like(String),
}

/// When on its way a packet is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// In the family of devices: what an interface received.
    Ingress,
    /// In the family of devices: what an interface is to send.
    Egress,
}

/// What becomes of a packet that no rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Accept,
    Drop,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleText {
    /// What its counter is called, if it has one: kept with the rule, for whoever reads counters.
    pub(crate) tag: Option<String>,
    pub(crate) steps: Vec<Expression>,
}
