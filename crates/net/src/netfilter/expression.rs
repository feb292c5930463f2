//! What a rule does with a packet, step by step: registers are loaded, compared, looked up.
//!
//! There are sixteen registers of four bytes. A longer value takes the next ones too, so the fields
//! of a concatenated key are loaded one behind the other, each beginning in a register of its own.

/// How a packet goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Jump(String),
    /// Like a jump that does not come back.
    Goto(String),
}

/// Where in a packet a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// From the Ethernet header on.
    Link { offset: u32, len: u32 },
    /// From the IP or ARP header on.
    Network { offset: u32, len: u32 },
    /// From the TCP, UDP or ICMP header on.
    Transport { offset: u32, len: u32 },
}

impl Field {
    pub(crate) const ETHER_DESTINATION: Self = Self::Link { offset: 0, len: 6 };
    pub(crate) const ETHER_SOURCE: Self = Self::Link { offset: 6, len: 6 };
    pub(crate) const ETHER_TYPE: Self = Self::Link { offset: 12, len: 2 };
    pub(crate) const IP4_SOURCE: Self = Self::Network { offset: 12, len: 4 };
    pub(crate) const IP4_DESTINATION: Self = Self::Network { offset: 16, len: 4 };
    pub(crate) const IP6_SOURCE: Self = Self::Network { offset: 8, len: 16 };
    pub(crate) const IP6_DESTINATION: Self = Self::Network { offset: 24, len: 16 };
    pub(crate) const ARP_SENDER_MAC: Self = Self::Network { offset: 8, len: 6 };
    pub(crate) const ARP_SENDER_IP: Self = Self::Network { offset: 14, len: 4 };
    pub(crate) const SOURCE_PORT: Self = Self::Transport { offset: 0, len: 2 };
    pub(crate) const DESTINATION_PORT: Self = Self::Transport { offset: 2, len: 2 };
    pub(crate) const ICMP_TYPE: Self = Self::Transport { offset: 0, len: 1 };
    pub(crate) const TCP_FLAGS: Self = Self::Transport { offset: 13, len: 1 };
    /// The client's hardware address in a DHCPv4 message behind its UDP header (RFC 2131).
    pub(crate) const DHCP_CLIENT_MAC: Self = Self::Transport { offset: 8 + 28, len: 6 };

    /// Bytes.
    pub(crate) fn len(self) -> u32 {
        match self {
            Self::Link { len, .. } | Self::Network { len, .. } | Self::Transport { len, .. } => len,
        }
    }
}

/// What the kernel knows of a packet besides its bytes (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// 16 bytes, filled with zeros.
    InputName,
    /// 16 bytes, filled with zeros.
    OutputName,
    /// The family: 2 for IPv4, 10 for IPv6. One byte.
    Family,
    /// The transport protocol. One byte.
    TransportProtocol,
    /// What rules wrote on the packet. Four bytes.
    Mark,
    /// Index of the interface that received it. Four bytes.
    InputIndex,
    /// Index of the interface that is to send it. Four bytes.
    OutputIndex,
}

/// Source or destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatKind {
    Source,
    Destination,
}

/// One step. Registers are numbered 0 to 15.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    Load {
        field: Field,
        to: u32,
    },
    Meta {
        key: Key,
        to: u32,
    },
    SetPacketType {
        from: u32,
    },
    SetMark {
        from: u32,
    },
    /// Bits of the connection's state: 1 invalid, 2 established, 4 related, 8 new.
    ConnectionState {
        to: u32,
    },
    /// Bits of the connection's status: 32 its destination was translated.
    ConnectionStatus {
        to: u32,
    },
    /// The type of the route to the destination: 2 local.
    DestinationKind {
        to: u32,
    },
    Immediate {
        value: Vec<u8>,
        to: u32,
    },
    Mask {
        register: u32,
        mask: Vec<u8>,
    },
    /// Sets bits, of four bytes.
    Raise {
        register: u32,
        bits: u32,
    },
    Equal {
        register: u32,
        value: Vec<u8>,
    },
    NotEqual {
        register: u32,
        value: Vec<u8>,
    },
    Range {
        register: u32,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// Goes on if the key is in the set.
    In {
        register: u32,
        set: String,
    },
    /// Goes on if the key is not in the set.
    NotIn {
        register: u32,
        set: String,
    },
    /// The value of the key in a map; ends the rule if there is none.
    Map {
        register: u32,
        map: String,
        to: u32,
    },
    /// The verdict of the key in a map; goes on if there is none.
    VerdictMap {
        register: u32,
        map: String,
    },
    /// The object of the key in a map; ends the rule if there is none or it does not match.
    ObjectMap {
        register: u32,
        map: String,
    },
    /// Adds a key and its value to a map that learns; goes on if there was room.
    Learn {
        key: u32,
        value: u32,
        map: String,
    },
    /// Counts a key's connections in a set that learns; goes on if with this one there are more than so many.
    Crowded {
        key: u32,
        set: String,
        connections_max: u32,
    },
    /// Counts up to `modulus`, from 0.
    Turn {
        modulus: u32,
        to: u32,
    },
    /// Jenkins' hash of the `len` bytes that begin in a register, modulo `modulus`.
    Hash {
        from: u32,
        len: u32,
        seed: u32,
        modulus: u32,
        to: u32,
    },
    /// Goes on while under the limit.
    Limit {
        per_second: u64,
        burst: u32,
    },
    Counter,
    /// To whoever listens to the group in this namespace, with the first bytes of the packet.
    Log {
        prefix: String,
        group: u16,
    },
    /// Answers a TCP segment by a reset, and drops it.
    Reject,
    /// Writes registers into the packet's Ethernet header.
    Store {
        from: u32,
        offset: u32,
        len: u32,
    },
    /// Lowers the maximum segment size in a TCP header to the register's, never raises it.
    ClampSegments {
        from: u32,
    },
    Nat {
        kind: NatKind,
        address: u32,
        port: Option<u32>,
    },
    Masquerade,
    /// Sends the frame as it is by the interface whose index the register holds; ends everything.
    SendBy {
        device: u32,
    },
    /// To a port of this host.
    Redirect {
        port: u32,
    },
    Verdict(Verdict),
}
