//! Brokers and nodes whose peers, projects and rules change while programs run.

#[allow(dead_code, reason = "shared with the tests of two hosts")]
#[path = "../two_hosts/hosts.rs"]
mod hosts;

#[path = "../common/mod.rs"]
mod common;

mod firewall;
mod hostile;
mod peers;
mod projects;
mod refused;
