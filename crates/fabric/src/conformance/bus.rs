//! The properties of a bus.

use super::{BusFactory, soon};
use crate::bus::{Bus, Message, PAYLOAD_BYTES_MAX, Pattern, Subject, Subscribe, Subscription};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Long enough for any reply.
const PATIENCE: Duration = Duration::from_secs(30);

fn subject(text: &str) -> Subject {
    text.parse().expect("a subject of the suite")
}

fn pattern(text: &str) -> Pattern {
    text.parse().expect("a pattern of the suite")
}

fn message(to: &str, text: &str) -> Message {
    Message::new(subject(to), Bytes::copy_from_slice(text.as_bytes()))
}

async fn subscribe(bus: &Arc<dyn Bus>, to: &str) -> Subscription {
    bus.subscribe(Subscribe::to(pattern(to))).await.expect("subscribe")
}

async fn text(subscription: &mut Subscription) -> String {
    let message = soon("a message", subscription.next()).await.expect("a message");
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// A message reaches all who subscribed before it was sent, in the sender's order, and nobody else.
pub async fn messages_reach_who_subscribed(factory: &dyn BusFactory) {
    let (sender, receiver) = (factory.connect().await, factory.connect().await);
    let mut first = subscribe(&receiver, "news").await;
    let mut second = subscribe(&sender, "news").await;
    let mut other = subscribe(&receiver, "other").await;
    for n in 0..10 {
        sender.publish(message("news", &n.to_string())).await.expect("publish");
    }
    sender.publish(message("other", "end")).await.expect("publish");
    for n in 0..10 {
        assert_eq!(text(&mut first).await, n.to_string());
        assert_eq!(text(&mut second).await, n.to_string());
    }
    assert_eq!(text(&mut other).await, "end");
    sender.publish(message("nobody", "x")).await.expect("no listener is no error");
    assert!(sender.stats().published >= 12);
}

/// Patterns route by the levels of the subject, and reach groups of receivers.
pub async fn patterns_route(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let mut exact = subscribe(&bus, "z1.n1.agent.drain").await;
    let mut any_node = subscribe(&bus, "z1.*.agent.drain").await;
    let mut zone = subscribe(&bus, "z1.>").await;
    let mut all = subscribe(&bus, ">").await;
    let sent = ["z1.n1.agent.drain", "z1.n2.agent.drain", "z1.n1.agent.stop", "z2.n1.agent.drain"];
    for to in sent {
        bus.publish(message(to, to)).await.expect("publish");
    }
    let expect: [(&mut Subscription, &[&str]); 4] = [
        (&mut exact, &sent[..1]),
        (&mut any_node, &sent[..2]),
        (&mut zone, &sent[..3]),
        (&mut all, &sent),
    ];
    for (subscription, expect) in expect {
        for name in expect {
            assert_eq!(text(subscription).await, *name);
        }
    }
    // What was not for them has not arrived before what is.
    bus.publish(message("z1.n1.agent.drain", "last")).await.expect("publish");
    assert_eq!(text(&mut exact).await, "last");
    assert_eq!(text(&mut any_node).await, "last");
}

/// Of a group, one gets each message; all members take part; who is in no group gets everything.
pub async fn groups_share(factory: &dyn BusFactory) {
    const MESSAGES: usize = 60;
    let bus = factory.connect().await;
    let mut outside = subscribe(&bus, "work").await;
    let (sender, mut taken) = tokio::sync::mpsc::channel(MESSAGES * 4);
    let mut members = tokio::task::JoinSet::new();
    for member in 0..3 {
        let wish = Subscribe::to(pattern("work")).in_group("workers");
        let mut subscription = bus.subscribe(wish).await.expect("subscribe");
        let sender = sender.clone();
        members.spawn(async move {
            while let Some(message) = subscription.next().await {
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                sender.send((member, text)).await.expect("the suite listens");
            }
        });
    }
    for n in 0..MESSAGES {
        bus.publish(message("work", &n.to_string())).await.expect("publish");
    }
    let mut seen = BTreeSet::new();
    let mut active = BTreeSet::new();
    for _ in 0..MESSAGES {
        let (member, text) = soon("a message", taken.recv()).await.expect("a member");
        assert!(seen.insert(text), "no message is taken twice");
        active.insert(member);
    }
    assert_eq!(active.len(), 3, "each member takes part");
    for n in 0..MESSAGES {
        assert_eq!(text(&mut outside).await, n.to_string());
    }
    members.shutdown().await;
}

/// A request gets the reply of one who listens, many at once each its own.
pub async fn requests_are_answered(factory: &dyn BusFactory) {
    let (asker, responder) = (factory.connect().await, factory.connect().await);
    let mut requests = subscribe(&responder, "echo.*").await;
    let serving = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let reply = format!("{}!", String::from_utf8_lossy(&request.payload));
            responder.reply(&request, reply.into()).await.expect("reply");
            // A second reply is lost, not taken for the answer of something else.
            responder.reply(&request, Bytes::from_static(b"again")).await.expect("reply");
        }
    });
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..50 {
        let asker = asker.clone();
        asking.spawn(async move {
            let reply =
                asker.request(message(&format!("echo.{n}"), &n.to_string()), PATIENCE).await;
            assert_eq!(reply.expect("a reply").payload, format!("{n}!"));
        });
    }
    asking.join_all().await;
    serving.abort();
}

/// A request that nobody listens to fails at once, not after its deadline.
pub async fn requests_without_responders_fail_at_once(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let _other = subscribe(&bus, "somewhere.else").await;
    let request = bus.request(message("nobody.here", "x"), Duration::from_secs(3600));
    let error = soon("the error", request).await.expect_err("nobody listens");
    assert_eq!(error.code(), "NO_RESPONDERS");
}

/// A request that is not answered ends with its deadline.
pub async fn requests_time_out(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let mut silent = subscribe(&bus, "silent").await;
    let request = bus.request(message("silent", "x"), Duration::from_millis(50));
    let error = soon("the error", request).await.expect_err("no reply");
    assert_eq!(error.code(), "BUS_TIMEOUT");
    // A late reply disturbs nobody.
    let late = soon("the request", silent.next()).await.expect("the request");
    bus.reply(&late, Bytes::from_static(b"late")).await.expect("reply");
}

/// An error reply reaches the asker with its code and text.
pub async fn errors_travel(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let mut requests = subscribe(&bus, "refuse").await;
    let responder = bus.clone();
    let serving = tokio::spawn(async move {
        let request = requests.next().await.expect("a request");
        responder.reply_error(&request, "CAPACITY_EXHAUSTED", "no room").await.expect("reply");
    });
    let error = bus.request(message("refuse", "x"), PATIENCE).await.expect_err("refused");
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("CAPACITY_EXHAUSTED", "CAPACITY_EXHAUSTED: no room",)
    );
    serving.await.expect("the responder");
}

/// Headers arrive as they were sent; those that would break the wire are refused.
pub async fn headers_travel(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let mut subscription = subscribe(&bus, "h").await;
    let sent = message("h", "x").with_header("trace-id", "abc").expect("a header");
    let sent = sent.with_header("empty", "").expect("a header");
    bus.publish(sent).await.expect("publish");
    let got = soon("the message", subscription.next()).await.expect("the message");
    assert_eq!(got.headers.get("Trace-Id"), Some("abc"));
    assert_eq!(got.headers.get("empty"), Some(""));
    assert_eq!(got.headers.get("none"), None);
    for (name, value) in [("", "x"), ("a b", "x"), ("a:", "x"), ("a", "x\r\nb: y"), ("a", "\0")] {
        let error = message("h", "x").with_header(name, value).expect_err("a bad header");
        assert_eq!(error.code(), "BAD_HEADER");
    }
}

/// The largest message passes, a larger one is refused.
pub async fn messages_are_bounded(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let mut subscription = subscribe(&bus, "large").await;
    let largest = Bytes::from(vec![b'x'; PAYLOAD_BYTES_MAX]);
    bus.publish(Message::new(subject("large"), largest.clone())).await.expect("publish");
    let got = soon("the message", subscription.next()).await.expect("the message");
    assert_eq!(got.payload.len(), PAYLOAD_BYTES_MAX);
    let larger = Message::new(subject("large"), largest).with_header("a", "b").expect("a header");
    let error = bus.publish(larger.clone()).await.expect_err("too large");
    assert_eq!(error.code(), "MESSAGE_TOO_LARGE");
    let error = bus.request(larger, PATIENCE).await.expect_err("too large");
    assert_eq!(error.code(), "MESSAGE_TOO_LARGE");
}

/// Who does not keep up loses messages and can count them; the others lose none.
pub async fn slow_subscribers_lose_and_know_it(factory: &dyn BusFactory) {
    const MESSAGES: u64 = 500;
    let bus = factory.connect().await;
    let wish = Subscribe::to(pattern("flood")).buffer(8);
    let mut slow = bus.subscribe(wish).await.expect("subscribe");
    let mut quick = subscribe(&bus, "flood").await;
    for n in 0..MESSAGES {
        bus.publish(message("flood", &n.to_string())).await.expect("publish");
        assert_eq!(text(&mut quick).await, n.to_string());
    }
    let counted = async {
        while slow.dropped() < MESSAGES - 8 {
            tokio::task::yield_now().await;
        }
    };
    soon("the count of lost messages", counted).await;
    assert_eq!(quick.dropped(), 0);
    // What was kept is in order, and after it the subscriber takes part again.
    let mut last: Option<u64> = None;
    for _ in 0..MESSAGES - slow.dropped() {
        let n: u64 = text(&mut slow).await.parse().expect("a number");
        assert!(last.is_none_or(|last| last < n));
        last = Some(n);
    }
    bus.publish(message("flood", "after")).await.expect("publish");
    assert_eq!(text(&mut slow).await, "after");
    let none = Subscribe::to(pattern("flood")).buffer(0);
    assert_eq!(bus.subscribe(none).await.expect_err("no room").code(), "NO_BUFFER");
}

/// A dropped subscription takes nothing from its group and answers no request.
pub async fn dropped_subscriptions_are_gone(factory: &dyn BusFactory) {
    let bus = factory.connect().await;
    let wish = Subscribe::to(pattern("g")).in_group("g");
    let mut stays = bus.subscribe(wish.clone()).await.expect("subscribe");
    let goes = bus.subscribe(wish).await.expect("subscribe");
    drop(goes);
    for n in 0..20 {
        bus.publish(message("g", &n.to_string())).await.expect("publish");
        assert_eq!(text(&mut stays).await, n.to_string());
    }
    drop(stays);
    let gone = async {
        loop {
            match bus.request(message("g", "x"), Duration::from_millis(50)).await {
                Err(error) if error.code() == "NO_RESPONDERS" => return,
                Ok(_) | Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    soon("the end of the subscription", gone).await;
}
