use super::*;
use crate::networks::{Records, ready};
use skein_model::Peer;

/// Two machines of `blue` on two nodes, 10.20.0.2 in the group `web`, which lets ports 80 to 90 in from `from`, and 10.20.0.3.
fn records(from: &[Peer]) -> View {
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .network("blue", 5000, |_| {})
        .network("red", 5001, |_| {})
        .group("blue", "web", from)
        .group("blue", "none", &[])
        .service("blue", "web", &["web"])
        .service("blue", "app", &["none"])
        .machine("blue", "web-1", "n1", 2, ready())
        .machine("blue", "app-1", "n2", 3, ready());
    records.0
}

#[track_caller]
fn check(view: &View, project: &str, low: &str, high: &str, expect: bool) {
    let key = ConnectionKey::new(low.parse().unwrap(), high.parse().unwrap());
    let project = project.parse().unwrap();
    assert_eq!(lets_through(view, &project, &key), expect, "{project}: {low} and {high}");
}

#[test]
fn what_the_network_s_rules_let_through_may_leave_tcp() {
    let open = records(&[Peer::Any]);
    check(&open, "blue", "10.20.0.2:80", "10.20.0.3:40000", true);
    check(&open, "blue", "10.20.0.2:90", "10.20.0.3:40000", true);
    // From no side: neither is 40000 open there, nor anything here.
    check(&open, "blue", "10.20.0.2:91", "10.20.0.3:40000", false);
    check(&open, "blue", "10.20.0.2:40000", "10.20.0.3:80", false);
}

#[test]
fn a_rule_that_goes_takes_the_permission_with_it() {
    let closed = records(&[]);
    check(&closed, "blue", "10.20.0.2:80", "10.20.0.3:40000", false);
    let group = records(&[Peer::Group("none".parse().unwrap())]);
    check(&group, "blue", "10.20.0.2:80", "10.20.0.3:40000", true);
}

#[test]
fn a_port_and_a_stranger_are_judged_too() {
    let open = records(&[Peer::Cidr("10.20.0.0/24".parse().unwrap())]);
    check(&open, "blue", "10.20.0.2:80", "10.20.0.3:40000", true);
    // The stranger may not come in, but the machine may go out, and who began is not known.
    check(&open, "blue", "10.20.0.2:80", "192.0.2.9:40000", true);
}

#[test]
fn addresses_that_are_nobody_s_are_not_the_networks_affair() {
    let closed = records(&[]);
    check(&closed, "blue", "172.17.0.2:80", "172.17.0.3:40000", true);
    // Another project's ports are not this one's; its programs meet only each other.
    check(&closed, "red", "10.20.0.2:80", "10.20.0.3:40000", true);
}
