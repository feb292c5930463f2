//! Which packets are asked for in which table of routes.

use super::{Netlink, absent_is_fine, cause, collect};
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// The main table of routes.
pub(crate) const TABLE_MAIN: u8 = 254;
/// The table of what goes back the way it came.
pub(crate) const TABLE_BACK: u8 = 100;
/// Before the main table's, which has 32,766.
const PRIORITY: u32 = 100;

/// Packets that are looked up in [`TABLE_BACK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// With all these bits in their mark.
    Marked(u32),
    /// From an address of ours.
    From(Ipv4Addr),
}

impl Netlink {
    /// What is looked up in [`TABLE_BACK`].
    pub(crate) async fn backs(&self) -> io::Result<Vec<Back>> {
        let all = collect(self.handle.rule().get(IpVersion::V4).execute()).await?;
        Ok(all.iter().filter_map(back_of).collect())
    }

    /// One that is there is no failure.
    pub(crate) async fn set_back(&self, back: Back) -> io::Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = message(back);
        match request.execute().await.map_err(cause) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    pub(crate) async fn unset_back(&self, back: Back) -> io::Result<()> {
        absent_is_fine(self.handle.rule().del(message(back)).execute().await)
    }
}

fn message(back: Back) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.table = TABLE_BACK;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(PRIORITY));
    match back {
        Back::Marked(bits) => {
            message.attributes.extend([RuleAttribute::FwMark(bits), RuleAttribute::FwMask(bits)]);
        }
        Back::From(address) => {
            message.header.src_len = 32;
            message.attributes.push(RuleAttribute::Source(IpAddr::V4(address)));
        }
    }
    message
}

fn back_of(message: &RuleMessage) -> Option<Back> {
    // Others may ask the table too; only ours have this priority.
    let is_ours = message.attributes.contains(&RuleAttribute::Priority(PRIORITY));
    if message.header.table != TABLE_BACK || !is_ours {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(bits) => Some(Back::Marked(*bits)),
        RuleAttribute::Source(IpAddr::V4(address)) => Some(Back::From(*address)),
        _ => None,
    })
}
