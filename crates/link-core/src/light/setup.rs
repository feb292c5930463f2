//! The set-up of a session: who the other is, that it knows the key, and how large a datagram the path carries.
//!
//! ```text
//!  caller                                   answerer
//!    hello (padded, proof of key) ─────────▶   nothing is changed yet
//!    ◀──────── welcome (padded, proof of both nonces, session tag)
//!    confirm (padded, proof of both nonces) ─▶ the former session ends, this one holds
//!    ◀──────────────────────────────── ready
//! ```
//!
//! A datagram of full size each way shows that the path carries such; unanswered hellos get smaller. An old
//! hello that somebody repeats makes nothing but one welcome; an old welcome or confirm does not fit the nonces. If
//! both call, the agent with the smaller id is the caller and the other gives up its call.

use super::config::{Check, Config, DatagramSize};
use super::control::{Introduction, Message, Nonce, Proof, Welcome};
use super::header::SessionTag;
use super::time::Moment;
use alloc::vec::Vec;
use core::time::Duration;

/// How long an answer to a hello or confirm may take before it is repeated, at first.
const REPEAT_AFTER: Duration = Duration::from_millis(10);
/// And at most: an absent peer costs four frames a second.
const REPEAT_AFTER_MAX: Duration = Duration::from_millis(250);
/// So many hellos of one size stay unanswered before a smaller one is tried.
const TRIES_OF_A_SIZE: u32 = 2;

/// So many confirms stay unanswered before a hello is sent again.
const TRIES_OF_A_CONFIRM: u32 = 5;

/// What both ends have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) tag: SessionTag,
    pub(crate) datagram: DatagramSize,
    pub(crate) checked: bool,
    pub(crate) peer_incarnation: u64,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call {
    nonce: Nonce,
    size: DatagramSize,
    tries: u32,
    pub(crate) due: Moment,
    pause: Duration,
    /// The welcome came: what to confirm.
    pub(crate) confirming: Option<(Nonce, Agreed)>,
}

/// A welcome that waits for its confirm.
#[derive(Debug)]
pub(crate) struct Answer {
    caller: Introduction,
    nonce: Nonce,
    pub(crate) agreed: Agreed,
}

impl Call {
    pub(crate) fn new(config: &Config, nonce: Nonce, now: Moment) -> Self {
        Self {
            nonce,
            size: config.datagram_max,
            tries: 0,
            due: now,
            pause: REPEAT_AFTER,
            confirming: None,
        }
    }

    /// The message that is due, and the size it is padded to.
    pub(crate) fn next(&mut self, config: &Config, now: Moment) -> (Message, DatagramSize) {
        self.tries += 1;
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(REPEAT_AFTER_MAX);
        if self.tries > TRIES_OF_A_CONFIRM {
            // Two hellos of different sizes came together, and the welcome is to the one that was forgotten; or the peer began anew.
            self.confirming = None;
            self.tries = 1;
        }
        if let Some((nonce, agreed)) = &self.confirming {
            let proof = config.key.prove(&[b"confirm", nonce, &self.nonce]);
            return (Message::Confirm { nonce: *nonce, proof }, agreed.datagram);
        }
        if self.tries > TRIES_OF_A_SIZE {
            self.tries = 1;
            self.pause = REPEAT_AFTER * 2;
            // After the least, all sizes again: the peer may only now have come up.
            self.size = self.size.smaller().unwrap_or(config.datagram_max);
        }
        let who = introduction(config, self.nonce, self.size);
        let proof = prove_hello(config, &who);
        (Message::Hello { who, proof }, self.size)
    }

    /// A welcome came. Whether it is the answer to this call.
    pub(crate) fn on_welcome(&mut self, config: &Config, welcome: &Welcome, now: Moment) -> bool {
        let who = &welcome.who;
        let fits = self.confirming.is_none()
            && who.from == config.peer
            && who.to == config.me
            && welcome.caller_nonce == self.nonce
            && welcome.session != 0
            && config.key.verify(&[&welcome_bytes(welcome)], &welcome.proof);
        if fits {
            let datagram = self.size.min(DatagramSize::new(usize::from(who.datagram_max)));
            let agreed = Agreed {
                tag: SessionTag(welcome.session),
                datagram,
                checked: who.checked,
                peer_incarnation: who.incarnation,
            };
            self.confirming = Some((who.nonce, agreed));
            self.due = now;
            self.pause = REPEAT_AFTER;
            self.tries = 0;
        }
        fits
    }
}

impl Answer {
    /// Answers a hello; `former` is the tag that must not come again. `None`
    /// for a hello of somebody else, or without the key.
    pub(crate) fn to(
        config: &Config,
        caller: Introduction,
        proof: &Proof,
        nonce: Nonce,
        former: SessionTag,
    ) -> Option<Self> {
        let ours = caller.from == config.peer && caller.to == config.me;
        if !ours || !config.key.verify(&[&hello_bytes(&caller)], proof) {
            return None;
        }
        let seed = config.key.prove(&[b"tag", &caller.nonce, &nonce]);
        let mut tag = u16::from_be_bytes([seed[0], seed[1]]).max(1);
        if tag == former.0 {
            tag = if tag == u16::MAX { 1 } else { tag + 1 };
        }
        let asked = DatagramSize::new(usize::from(caller.datagram_max));
        let agreed = Agreed {
            tag: SessionTag(tag),
            datagram: asked.min(config.datagram_max),
            checked: caller.checked || config.check == Check::EndToEnd,
            peer_incarnation: caller.incarnation,
        };
        Some(Self { caller, nonce, agreed })
    }

    /// The welcome.
    pub(crate) fn message(&self, config: &Config) -> (Message, DatagramSize) {
        let mut who = introduction(config, self.nonce, self.agreed.datagram);
        who.checked = self.agreed.checked;
        let mut welcome = Welcome {
            who,
            caller_nonce: self.caller.nonce,
            session: self.agreed.tag.0,
            proof: Proof::default(),
        };
        welcome.proof = config.key.prove(&[&welcome_bytes(&welcome)]);
        (Message::Welcome(welcome), self.agreed.datagram)
    }

    /// Whether a confirm is the answer to this welcome.
    pub(crate) fn is_confirmed(&self, config: &Config, nonce: &Nonce, proof: &Proof) -> bool {
        *nonce == self.nonce && config.key.verify(&[b"confirm", nonce, &self.caller.nonce], proof)
    }

    /// Whether it answers the same call as `caller`, repeated.
    pub(crate) fn is_to(&self, caller: &Introduction) -> bool {
        self.caller == *caller
    }
}

fn introduction(config: &Config, nonce: Nonce, size: DatagramSize) -> Introduction {
    Introduction {
        checked: config.check == Check::EndToEnd,
        from: config.me,
        to: config.peer,
        incarnation: config.incarnation,
        nonce,
        datagram_max: size.raw(),
    }
}

fn hello_bytes(who: &Introduction) -> Vec<u8> {
    let mut bytes = Vec::new();
    Message::write_hello(who, &mut bytes);
    bytes
}

fn prove_hello(config: &Config, who: &Introduction) -> Proof {
    config.key.prove(&[&hello_bytes(who)])
}

fn welcome_bytes(welcome: &Welcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    welcome.write_proven(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::light::{AgentId, Key};

    /// Hellos that waited together for an address to be resolved: the first welcome is to one that the second made forgotten.
    #[test]
    fn a_welcome_to_a_forgotten_hello_is_got_over() {
        let key = || Key::new([1; 32]);
        let caller = Config::new(AgentId(1), AgentId(2), key(), 1, [1; 32]);
        let answerer = Config::new(AgentId(2), AgentId(1), key(), 1, [2; 32]);
        let mut call = Call::new(&caller, [7; size_of::<Nonce>()], Moment::default());
        let now = Moment::default();
        let mut hello = || match call.next(&caller, now).0 {
            Message::Hello { who, proof } => Some((who, proof)),
            _ => None,
        };
        let hellos: Vec<_> = (0..=TRIES_OF_A_SIZE).filter_map(|_| hello()).collect();
        let answers: Vec<_> = [0, hellos.len() - 1]
            .into_iter()
            .filter_map(|index| {
                let (who, proof) = &hellos[index];
                let nonce = [index as u8; size_of::<Nonce>()];
                Answer::to(&answerer, *who, proof, nonce, SessionTag(0))
            })
            .collect();
        let Message::Welcome(welcome) = answers[0].message(&answerer).0 else { panic!() };
        assert!(call.on_welcome(&caller, &welcome, now));
        let again = (0..10).find(|_| match call.next(&caller, now).0 {
            Message::Confirm { nonce, proof } => {
                assert!(!answers[1].is_confirmed(&answerer, &nonce, &proof));
                false
            }
            message => matches!(message, Message::Hello { .. }),
        });
        assert!(again.is_some(), "it says hello again");
    }
}
