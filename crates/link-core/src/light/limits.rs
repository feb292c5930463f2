//! What a wire can carry at most: the model behind the goals.
//!
//! A full datagram's header is 14 bytes, for it leaves its length out (`header.rs`). A full datagram of `payload` bytes takes `payload + header + encapsulation` bytes of the frame's payload, and the frame
//! takes 38 bytes more: 14 of addresses and type, 4 of frame check, 8 of preamble, 12 of gap (IEEE 802.3, clauses 3 and
//! 4.4.2). Shares of goodput follow; the bench measures how much of the difference is reached.

use super::check::CHECK_BYTES;
use super::header::HEADER_BYTES_MIN;

/// Bytes that Ethernet adds to a frame's payload on the wire.
const FRAME_BYTES: u32 = 14 + 4 + 8 + 12;

/// How a stream is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// The light protocol straight on Ethernet: 14 bytes.
    LightOnEthernet,
    /// The light protocol straight on Ethernet, with its own check: 18 bytes.
    LightOnEthernetChecked,
    /// The light protocol in UDP and IPv4: 42 bytes.
    LightInUdp,
    /// TCP and IPv4 with timestamps, as Linux does: 52 bytes.
    Tcp,
    /// The same within VXLAN: Ethernet, VXLAN, UDP and IPv4 around it, 50 bytes more.
    TcpInVxlan,
}

impl Encapsulation {
    /// Header bytes within the frame's payload.
    pub const fn header_bytes(self) -> u32 {
        const LIGHT: u32 = HEADER_BYTES_MIN as u32;
        match self {
            Self::LightOnEthernet => LIGHT,
            Self::LightOnEthernetChecked => LIGHT + CHECK_BYTES as u32,
            Self::LightInUdp => 20 + 8 + LIGHT,
            Self::Tcp => 20 + 20 + 12,
            Self::TcpInVxlan => 20 + 8 + 8 + 14 + 20 + 20 + 12,
        }
    }
}

/// The part of the wire's rate that is a stream's bytes, for a frame payload of `mtu` bytes: 0 to 1.
pub fn goodput_share(encapsulation: Encapsulation, mtu: u16) -> f64 {
    let mtu = u32::from(mtu);
    let payload = mtu.saturating_sub(encapsulation.header_bytes());
    f64::from(payload) / f64::from(mtu + FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(encapsulation: Encapsulation, mtu: u16, percent: f64) {
        let got = 100.0 * goodput_share(encapsulation, mtu);
        assert!((got - percent).abs() < 0.006, "{encapsulation:?} at {mtu}: {got}, not {percent}");
    }

    #[test]
    fn shares() {
        check(Encapsulation::LightOnEthernet, 1500, 96.62);
        check(Encapsulation::LightOnEthernetChecked, 1500, 96.36);
        check(Encapsulation::LightInUdp, 1500, 94.80);
        check(Encapsulation::Tcp, 1500, 94.15);
        check(Encapsulation::TcpInVxlan, 1500, 90.90);
        check(Encapsulation::LightOnEthernet, 9000, 99.42);
        check(Encapsulation::Tcp, 9000, 99.00);
        let gain = goodput_share(Encapsulation::LightOnEthernet, 1500)
            / goodput_share(Encapsulation::Tcp, 1500);
        assert!((gain - 1.0262).abs() < 0.0001, "{gain}: what fourteen bytes leave of 2.76 %");
    }
}
