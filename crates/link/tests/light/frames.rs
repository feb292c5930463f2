//! The carrier on Ethernet by itself: what is sent comes as it is, or not at all.

use super::until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skein_link::carrier::{Address, Carrier, Ethernet, Mac, Sent};
use skein_link::testbed::{Host, INTERFACE, Testbed};
use skein_link_core::light::DatagramSize;

/// More than the kernel keeps of what nobody reads.
const MANY: u32 = 10_000;

fn open(bed: &Testbed) -> [Ethernet; 2] {
    Host::BOTH.map(|host| {
        let carrier = bed.on(host, || Ethernet::open(INTERFACE, DatagramSize::ETHERNET));
        carrier.expect("a host").expect("an interface")
    })
}

/// The datagram with this number: its length depends on it, and goes up to the largest.
fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(46 + number as usize * 37 % 1455, number as u8);
    bytes
}

fn send(from: &mut Ethernet, to: Mac, mut numbers: std::ops::Range<u32>) {
    let mut source = |out: &mut [u8]| {
        let bytes = datagram(numbers.next()?);
        out[..bytes.len()].copy_from_slice(&bytes);
        Some(bytes.len())
    };
    until("sending", || from.send(&Address::Mac(to), &mut source).expect("a carrier") == Sent::All);
}

/// What has come, until nothing does.
fn receive(at: &mut Ethernet, from: Mac) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    let mut take = |address, bytes: &[u8]| {
        assert_eq!(address, Address::Mac(from));
        got.push(bytes.to_vec());
    };
    while at.receive(&mut take).expect("a carrier") > 0 {}
    got
}

#[test]
fn frames_come_in_order_and_whole() {
    let bed = Testbed::new().expect("two hosts");
    let [mut a, mut b] = open(&bed);
    for turn in 0..20 {
        let numbers = turn * 500..turn * 500 + 500;
        send(&mut a, b.mac(), numbers.clone());
        let got = receive(&mut b, a.mac());
        assert!(got == numbers.map(datagram).collect::<Vec<_>>(), "{} datagrams", got.len());
    }
}

#[test]
fn what_nobody_reads_in_time_is_lost_and_nothing_else() {
    let bed = Testbed::new().expect("two hosts");
    let [mut a, mut b] = open(&bed);
    for _ in 0..2 {
        send(&mut a, b.mac(), 0..MANY);
        let got = receive(&mut b, a.mac());
        assert!((1000..MANY as usize).contains(&got.len()), "{} datagrams", got.len());
        assert!(got.into_iter().zip(0..MANY).all(|(got, number)| got == datagram(number)));
    }
}

#[test]
fn an_interface_that_was_down_is_heard_again() {
    let bed = Testbed::new().expect("two hosts");
    let [mut a, mut b] = open(&bed);
    bed.plug(false).expect("an unplugged wire");
    let quiet = |b: &mut Ethernet| {
        assert_eq!(receive(b, Mac([0; 6])), Vec::<Vec<u8>>::new());
        let mut descriptors = [PollFd::from_borrowed_fd(b.descriptor(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut descriptors, Some(&now)).expect("a descriptor") == 0
    };
    until("the error's end", || quiet(&mut b));
    bed.plug(true).expect("a wire");
    let mut got = Vec::new();
    until("a frame", || {
        send(&mut a, b.mac(), 7..8);
        got = receive(&mut b, a.mac());
        !got.is_empty()
    });
    assert_eq!(got[0], datagram(7));
}

#[test]
fn what_is_longer_than_frames_are_here_does_not_come() {
    let bed = Testbed::new().expect("two hosts");
    bed.set_mtu(4000).expect("an interface");
    let open = |host, bytes| {
        let size = DatagramSize::new(bytes);
        let carrier = bed.on(host, move || Ethernet::open(INTERFACE, size));
        carrier.expect("a host").expect("an interface")
    };
    let (mut a, mut b) = (open(Host::A, 4000), open(Host::B, 1500));
    let to = Address::Mac(b.mac());
    let mut lengths = [4000, 1500, 3000, 100].into_iter();
    let mut source = |out: &mut [u8]| {
        let length = lengths.next()?;
        out[..length].fill(1);
        Some(length)
    };
    until("sending", || a.send(&to, &mut source).expect("a carrier") == Sent::All);
    let got = receive(&mut b, a.mac());
    let lengths: Vec<usize> = got.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1500, 100]);
}
