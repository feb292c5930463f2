//! Short words for what rules are made of.

use crate::netfilter::{
    Chain, Devices, Expression, Field, Hook, HookPoint, Key, Policy, RuleText, Verdict,
};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP6: u8 = 58;

pub(super) const ESTABLISHED: u32 = 2;
pub(super) const RELATED: u32 = 4;
pub(super) const INVALID: u32 = 1;

/// `NFPROTO_IPV4`.
pub(super) const FAMILY_4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(super) const FAMILY_6: u8 = 10;

/// A rule in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Steps(Vec<Expression>);

impl Steps {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn then(mut self, step: Expression) -> Self {
        self.0.push(step);
        self
    }

    /// With the steps of another behind its own.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(super) fn field(self, field: Field, value: &[u8]) -> Self {
        self.then(Expression::Load { field, to: 0 })
            .then(Expression::Equal { register: 0, value: value.to_vec() })
    }

    pub(super) fn masked(self, field: Field, mask: &[u8], value: &[u8]) -> Self {
        self.then(Expression::Load { field, to: 0 })
            .then(Expression::Mask { register: 0, mask: mask.to_vec() })
            .then(Expression::Equal { register: 0, value: value.to_vec() })
    }

    pub(super) fn meta(self, key: Key, value: &[u8]) -> Self {
        self.then(Expression::Meta { key, to: 0 })
            .then(Expression::Equal { register: 0, value: value.to_vec() })
    }

    pub(super) fn input(self, interface: &str) -> Self {
        self.meta(Key::InputName, &padded(interface))
    }

    pub(super) fn output(self, interface: &str) -> Self {
        self.meta(Key::OutputName, &padded(interface))
    }

    /// Interfaces whose name begins so.
    pub(super) fn input_like(self, prefix: &str) -> Self {
        self.meta(Key::InputName, prefix.as_bytes())
    }

    /// Interfaces whose name begins so.
    pub(super) fn output_like(self, prefix: &str) -> Self {
        self.meta(Key::OutputName, prefix.as_bytes())
    }

    /// Interfaces whose name begins otherwise.
    pub(super) fn output_not_like(self, prefix: &str) -> Self {
        let value = prefix.as_bytes().to_vec();
        self.then(Expression::Meta { key: Key::OutputName, to: 0 })
            .then(Expression::NotEqual { register: 0, value })
    }

    pub(super) fn family(self, family: u8) -> Self {
        self.meta(Key::Family, &[family])
    }

    pub(super) fn protocol(self, protocol: u8) -> Self {
        self.meta(Key::TransportProtocol, &[protocol])
    }

    pub(super) fn ports(self, first: u16, last: u16) -> Self {
        let step = if first == last {
            return self.field(Field::DESTINATION_PORT, &first.to_be_bytes());
        } else {
            let (first, last) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
            Expression::Range { register: 0, first, last }
        };
        self.then(Expression::Load { field: Field::DESTINATION_PORT, to: 0 }).then(step)
    }

    /// Connections in one of these states.
    pub(super) fn state(self, states: u32) -> Self {
        let none = 0_u32.to_ne_bytes().to_vec();
        self.then(Expression::ConnectionState { to: 0 })
            .then(Expression::Mask { register: 0, mask: states.to_ne_bytes().to_vec() })
            .then(Expression::NotEqual { register: 0, value: none })
    }

    pub(super) fn member(self, field: Field, set: impl Into<String>) -> Self {
        self.then(Expression::Load { field, to: 0 })
            .then(Expression::In { register: 0, set: set.into() })
    }

    pub(super) fn verdict_map(self, field: Field, map: &str) -> Self {
        self.then(Expression::Load { field, to: 0 })
            .then(Expression::VerdictMap { register: 0, map: map.to_owned() })
    }

    /// A rule that only does what was said.
    pub(super) fn rule(self) -> RuleText {
        RuleText { tag: None, steps: self.0 }
    }

    pub(super) fn accept(self) -> RuleText {
        self.then(Expression::Verdict(Verdict::Accept)).rule()
    }

    pub(super) fn jump(self, chain: &str) -> RuleText {
        self.then(Expression::Verdict(Verdict::Jump(chain.to_owned()))).rule()
    }

    pub(super) fn goto(self, chain: &str) -> RuleText {
        self.then(Expression::Verdict(Verdict::Goto(chain.to_owned()))).rule()
    }

    /// Counts under a name, then decides.
    pub(super) fn counted(self, tag: impl Into<String>, verdict: Verdict) -> RuleText {
        let steps = self.then(Expression::Counter).then(Expression::Verdict(verdict)).0;
        RuleText { tag: Some(tag.into()), steps }
    }

    pub(super) fn drop(self, why: &str) -> RuleText {
        self.counted(format!("drop {why}"), Verdict::Drop)
    }
}

/// An interface's name as the kernel compares it.
pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let used = name.len().min(15);
    bytes[..used].copy_from_slice(&name.as_bytes()[..used]);
    bytes
}

/// A chain that begins at a hook.
pub(super) fn base(point: HookPoint, priority: i32, policy: Policy, rules: Vec<RuleText>) -> Chain {
    let hook = Hook { point, priority, policy, is_nat: false, devices: Vec::new() };
    Chain { hook: Some(hook), rules }
}

/// A chain that translates addresses.
pub(super) fn nat(point: HookPoint, priority: i32, rules: Vec<RuleText>) -> Chain {
    let policy = Policy::Accept;
    let hook = Hook { point, priority, policy, is_nat: true, devices: Vec::new() };
    Chain { hook: Some(hook), rules }
}

/// A chain for what certain interfaces receive or send.
pub(super) fn at_devices(point: HookPoint, devices: Vec<Devices>, rules: Vec<RuleText>) -> Chain {
    let policy = Policy::Accept;
    Chain { hook: Some(Hook { point, priority: 0, policy, is_nat: false, devices }), rules }
}

/// A chain that is entered from others.
pub(super) fn chain(rules: Vec<RuleText>) -> Chain {
    Chain { hook: None, rules }
}
