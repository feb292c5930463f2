//! The pool of a network's addresses: who holds which, and which must rest.
//!
//! ```text
//!   free ── allocate / claim ──> held ── release ──> resting ── quarantine over ──> free
//!                                                      └────── claim ──> held
//! ```
//! An address rests before it is used again because neighbours remember who had it. The pool keeps
//! no clock: `now` is an argument, counted from any fixed point that all calls share.

use super::Cidr;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How long an address rests after its release: neighbours that the bridge does not answer for
/// (Linux keeps a stale ARP entry for up to a minute) have forgotten the old machine by then.
pub const QUARANTINE_DEFAULT: Duration = Duration::from_secs(60);

/// The addresses of one network. Same calls, same answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPool {
    cidr: Cidr,
    gateway: Ipv4Addr,
    quarantine: Duration,
    /// By host index. The gateway is here for good; a resting address stays until it is looked at
    /// again.
    leases: BTreeMap<u32, Lease>,
    /// Index of the next candidate, so that the address unused for longest comes first.
    cursor: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    Gateway,
    Held,
    Resting { until: Duration },
}

/// What [`AddressPool::release`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The address was held and rests from now on.
    Resting,
    /// The address was not held; nothing changed.
    NotHeld,
}

/// Why an address cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every address is held or rests.
    #[error(
        "no address is free in {cidr}: {held} held, {resting} resting after use; \
         stop machines or choose a larger network"
    )]
    Exhausted {
        /// The network.
        cidr: Cidr,
        /// Addresses held by machines.
        held: usize,
        /// Addresses that rest.
        resting: usize,
        /// When the first resting address becomes free, on the clock of the caller.
        free_at: Option<Duration>,
    },
    /// Somebody holds the address already.
    #[error("address {address} is already held")]
    Taken {
        /// The address asked for.
        address: Ipv4Addr,
    },
    /// No machine of this network can have the address.
    #[error("address {address} cannot belong to a machine of {cidr} with gateway {gateway}")]
    Outside {
        /// The address asked for.
        address: Ipv4Addr,
        /// The network.
        cidr: Cidr,
        /// Its gateway.
        gateway: Ipv4Addr,
    },
}

impl PoolError {
    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "ADDRESS_EXHAUSTED",
            Self::Taken { .. } => "ADDRESS_TAKEN",
            Self::Outside { .. } => "ADDRESS_OUTSIDE",
        }
    }
}

impl AddressPool {
    /// All addresses of `cidr` but the gateway's, all free.
    ///
    /// # Errors
    /// [`PoolError::Outside`] if the gateway is no host address of the network.
    pub fn new(cidr: Cidr, gateway: Ipv4Addr, quarantine: Duration) -> Result<Self, PoolError> {
        let index =
            cidr.index_of(gateway).ok_or(PoolError::Outside { address: gateway, cidr, gateway })?;
        let leases = BTreeMap::from([(index, Lease::Gateway)]);
        Ok(Self { cidr, gateway, quarantine, leases, cursor: 0 })
    }

    /// Takes the free address that follows the one allocated last, wrapping at the end.
    ///
    /// # Errors
    /// [`PoolError::Exhausted`] if there is none.
    pub fn allocate(&mut self, now: Duration) -> Result<Ipv4Addr, PoolError> {
        let count = self.cidr.host_count();
        // Each step passes one lease, so this ends after at most as many steps as there are leases.
        for step in 0..count {
            let index = (self.cursor + step) % count;
            let Some(address) = self.cidr.host(index) else { break };
            if self.is_free(index, now) {
                self.leases.insert(index, Lease::Held);
                self.cursor = (index + 1) % count;
                return Ok(address);
            }
        }
        Err(self.exhausted(now))
    }

    /// Takes `address` itself, also if it rests: whoever names an address knows whose it was.
    /// Rebuilds the pool from stored state, one call for each address held.
    ///
    /// # Errors
    /// [`PoolError::Taken`] if it is held, [`PoolError::Outside`] if it is the gateway's or not in
    /// the network.
    pub fn claim(&mut self, address: Ipv4Addr) -> Result<(), PoolError> {
        let (cidr, gateway) = (self.cidr, self.gateway);
        let outside = PoolError::Outside { address, cidr, gateway };
        let index = cidr.index_of(address).ok_or(outside.clone())?;
        match self.leases.get(&index) {
            Some(Lease::Gateway) => Err(outside),
            Some(Lease::Held) => Err(PoolError::Taken { address }),
            Some(Lease::Resting { .. }) | None => {
                self.leases.insert(index, Lease::Held);
                Ok(())
            }
        }
    }

    /// Gives `address` back; it rests for the quarantine from `now`. Releasing twice does not
    /// prolong its rest.
    pub fn release(&mut self, address: Ipv4Addr, now: Duration) -> Released {
        let held = self.cidr.index_of(address).and_then(|index| self.leases.get_mut(&index));
        match held {
            Some(lease @ Lease::Held) => {
                *lease = Lease::Resting { until: now.saturating_add(self.quarantine) };
                Released::Resting
            }
            Some(Lease::Gateway | Lease::Resting { .. }) | None => Released::NotHeld,
        }
    }

    /// The addresses held, lowest first; without the gateway.
    pub fn held(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let held = self.leases.iter().filter(|(_, lease)| **lease == Lease::Held);
        held.filter_map(|(index, _)| self.cidr.host(*index))
    }

    /// How many addresses [`AddressPool::allocate`] could give out at `now`.
    pub fn free(&self, now: Duration) -> u32 {
        let used = self.leases.keys().filter(|index| !self.is_free(**index, now)).count();
        self.cidr.host_count() - u32::try_from(used).unwrap_or(u32::MAX)
    }

    /// The network.
    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// The gateway's address, which is never given out.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    fn is_free(&self, index: u32, now: Duration) -> bool {
        match self.leases.get(&index) {
            None => true,
            Some(Lease::Resting { until }) => *until <= now,
            Some(Lease::Gateway | Lease::Held) => false,
        }
    }

    fn exhausted(&self, now: Duration) -> PoolError {
        let resting = self.leases.values().filter_map(|lease| match lease {
            Lease::Resting { until } if *until > now => Some(*until),
            _ => None,
        });
        PoolError::Exhausted {
            cidr: self.cidr,
            held: self.held().count(),
            resting: resting.clone().count(),
            free_at: resting.min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pool(cidr: &str) -> AddressPool {
        let cidr: Cidr = cidr.parse().unwrap();
        AddressPool::new(cidr, cidr.host(0).unwrap(), QUARANTINE_DEFAULT).unwrap()
    }

    #[test]
    fn gives_each_address_once_then_says_what_is_in_the_way() {
        let mut pool = pool("10.0.0.0/29");
        let given: Vec<_> = (0..5).map(|_| pool.allocate(Duration::ZERO).unwrap()).collect();
        assert_eq!(given, (2..=6).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect::<Vec<_>>());
        assert_eq!(pool.release(given[1], Duration::ZERO), Released::Resting);
        let error = pool.allocate(Duration::from_secs(59)).unwrap_err();
        assert_eq!(error.code(), "ADDRESS_EXHAUSTED");
        let PoolError::Exhausted { held: 4, resting: 1, free_at, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(pool.allocate(free_at.unwrap()).unwrap(), given[1]);
    }

    #[test]
    fn the_address_unused_for_longest_comes_first() {
        let mut pool = pool("10.0.0.0/24");
        let first = pool.allocate(Duration::ZERO).unwrap();
        pool.release(first, Duration::ZERO);
        assert_ne!(pool.allocate(Duration::from_secs(3600)).unwrap(), first);
    }

    #[test]
    fn claims_are_checked() {
        let mut pool = pool("10.0.0.0/24");
        let code = |result: Result<(), PoolError>| result.unwrap_err().code();
        assert_eq!(pool.claim(Ipv4Addr::new(10, 0, 0, 9)), Ok(()));
        assert_eq!(code(pool.claim(Ipv4Addr::new(10, 0, 0, 9))), "ADDRESS_TAKEN");
        assert_eq!(code(pool.claim(Ipv4Addr::new(10, 0, 0, 1))), "ADDRESS_OUTSIDE");
        assert_eq!(code(pool.claim(Ipv4Addr::new(10, 0, 0, 255))), "ADDRESS_OUTSIDE");
        assert_eq!(code(pool.claim(Ipv4Addr::new(10, 0, 1, 1))), "ADDRESS_OUTSIDE");
        pool.release(Ipv4Addr::new(10, 0, 0, 9), Duration::ZERO);
        assert_eq!(pool.claim(Ipv4Addr::new(10, 0, 0, 9)), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Call {
        Allocate,
        Claim(u8),
        Release(u8),
        Wait(u16),
    }

    fn any_call() -> impl Strategy<Value = Call> {
        prop_oneof![
            Just(Call::Allocate),
            any::<u8>().prop_map(Call::Claim),
            any::<u8>().prop_map(Call::Release),
            any::<u16>().prop_map(Call::Wait),
        ]
    }

    proptest! {
        /// Against a model: a set of held addresses and the time each was released.
        #[test]
        fn no_address_is_held_twice_or_used_before_it_rested(
            calls in prop::collection::vec(any_call(), 0..200), prefix in 26u8..=30,
        ) {
            let mut pool = pool(&format!("10.0.0.0/{prefix}"));
            let (mut held, mut released) = (BTreeSet::new(), BTreeMap::new());
            let mut now = Duration::ZERO;
            for call in calls {
                let address = |n: u8| Ipv4Addr::new(10, 0, 0, n % (1 << (32 - prefix)));
                match call {
                    Call::Allocate => match pool.allocate(now) {
                        Ok(address) => {
                            prop_assert!(held.insert(address));
                            prop_assert!(address != pool.gateway() && pool.cidr().is_host(address));
                            if let Some(at) = released.get(&address) {
                                prop_assert!(now >= *at + QUARANTINE_DEFAULT);
                            }
                        }
                        Err(_) => prop_assert_eq!(pool.free(now), 0),
                    },
                    Call::Claim(n) => {
                        if pool.claim(address(n)).is_ok() {
                            prop_assert!(held.insert(address(n)));
                            released.remove(&address(n));
                        }
                    }
                    Call::Release(n) => {
                        let answer = pool.release(address(n), now);
                        prop_assert_eq!(answer == Released::Resting, held.remove(&address(n)));
                        if answer == Released::Resting {
                            released.insert(address(n), now);
                        }
                    }
                    Call::Wait(ms) => now += Duration::from_millis(u64::from(ms)),
                }
                prop_assert_eq!(pool.held().collect::<BTreeSet<_>>(), held.clone());
            }
            let mut rebuilt = self::pool(&format!("10.0.0.0/{prefix}"));
            for address in &held {
                prop_assert_eq!(rebuilt.claim(*address), Ok(()));
            }
            prop_assert_eq!(rebuilt.held().collect::<BTreeSet<_>>(), held);
        }
    }
}
