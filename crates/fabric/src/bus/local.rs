//! The bus inside one process.
//!
//! Subscriptions hang in a tree of pattern tokens, so that finding the receivers of a message costs its tokens and
//! its receivers, not all subscriptions. Sending never waits: what a full buffer cannot take is dropped and counted.

use super::{Bus, BusError, BusStats, Message, Subject, Subscribe, Subscription};
use async_trait::async_trait;
use futures_util::stream;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes that may wait for one subscriber: sixteen of the largest messages.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// First token of the subjects that replies go to.
const INBOX: &str = "_INBOX";

/// A bus for one process. Clones share it; subscriptions end when the last is gone.
#[derive(Clone, Default)]
pub struct LocalBus {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tree: RwLock<Branch>,
    /// Who waits for a reply, by the number in its inbox subject.
    inboxes: Mutex<HashMap<u64, mpsc::Sender<Message>>>,
    next: AtomicU64,
    turn: AtomicUsize,
    published: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

/// What hangs below one token.
#[derive(Default)]
struct Branch {
    children: HashMap<Box<str>, Branch>,
    here: Vec<Arc<Subscriber>>,
}

struct Subscriber {
    id: u64,
    group: Option<String>,
    sender: mpsc::Sender<Message>,
    waiting_bytes: AtomicUsize,
    dropped: Arc<AtomicU64>,
}

impl LocalBus {
    /// A bus without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers to everyone whom it concerns, and says how many those are, reached or not.
    fn deliver(&self, message: Message) -> usize {
        let shared = &self.shared;
        shared.published.fetch_add(1, Ordering::Relaxed);
        if let Some(number) = inbox_number(&message.subject) {
            let sender = lock(&shared.inboxes).get(&number).cloned();
            // A second reply, or one after the deadline, finds the inbox full or gone.
            let taken = sender.is_some_and(|sender| sender.try_send(message).is_ok());
            shared.delivered.fetch_add(u64::from(taken), Ordering::Relaxed);
            return usize::from(taken);
        }
        let mut found = Vec::new();
        let tokens: Vec<&str> = message.subject.tokens().collect();
        shared.tree.read().unwrap_or_else(PoisonError::into_inner).find(&tokens, &mut found);
        let mut groups: HashMap<String, Vec<Arc<Subscriber>>> = HashMap::new();
        let mut receivers = 0;
        for subscriber in found {
            match &subscriber.group {
                Some(group) => groups.entry(group.clone()).or_default().push(subscriber),
                None => {
                    receivers += 1;
                    shared.count(subscriber.offer(&message));
                }
            }
        }
        for members in groups.into_values() {
            receivers += 1;
            shared.count(self.offer_one(&members, &message));
        }
        receivers
    }

    /// Hands the message to one member: in turn, but rather to one that has room.
    fn offer_one(&self, members: &[Arc<Subscriber>], message: &Message) -> bool {
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..members.len()).map(|i| &members[(turn + i) % members.len()]);
        if in_turn().any(|member| member.try_offer(message)) {
            return true;
        }
        if let Some(unlucky) = in_turn().next() {
            unlucky.dropped.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

impl Shared {
    fn count(&self, taken: bool) {
        let counter = if taken { &self.delivered } else { &self.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Subscriber {
    fn offer(&self, message: &Message) -> bool {
        let taken = self.try_offer(message);
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn try_offer(&self, message: &Message) -> bool {
        let bytes = message.bytes();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = waiting == 0 || waiting + bytes <= WAITING_BYTES_MAX;
        let taken = fits && self.sender.try_send(message.clone()).is_ok();
        if !taken {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        taken
    }
}

impl Branch {
    fn insert<'a>(
        &mut self,
        mut tokens: impl Iterator<Item = &'a str>,
        subscriber: Arc<Subscriber>,
    ) {
        match tokens.next() {
            None => self.here.push(subscriber),
            Some(token) => {
                self.children.entry(token.into()).or_default().insert(tokens, subscriber);
            }
        }
    }

    /// Takes a subscriber out, and the branches that carry nothing any more. True when this one does not.
    fn remove<'a>(&mut self, mut tokens: impl Iterator<Item = &'a str>, id: u64) -> bool {
        match tokens.next() {
            None => self.here.retain(|subscriber| subscriber.id != id),
            Some(token) => {
                if self.children.get_mut(token).is_some_and(|child| child.remove(tokens, id)) {
                    self.children.remove(token);
                }
            }
        }
        self.here.is_empty() && self.children.is_empty()
    }

    fn find(&self, tokens: &[&str], found: &mut Vec<Arc<Subscriber>>) {
        let Some((first, rest)) = tokens.split_first() else {
            found.extend(self.here.iter().cloned());
            return;
        };
        if let Some(child) = self.children.get(*first) {
            child.find(rest, found);
        }
        if let Some(child) = self.children.get("*") {
            child.find(rest, found);
        }
        if let Some(child) = self.children.get(">") {
            found.extend(child.here.iter().cloned());
        }
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, message: Message) -> Result<(), BusError> {
        message.check()?;
        self.deliver(message);
        Ok(())
    }

    async fn request(&self, mut message: Message, deadline: Duration) -> Result<Message, BusError> {
        message.check()?;
        let subject = message.subject.clone();
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        // 1: the first reply is the reply.
        let (sender, mut replies) = mpsc::channel(1);
        lock(&self.shared.inboxes).insert(number, sender);
        let _inbox = Inbox { shared: &self.shared, number };
        message.reply = inbox_subject(number);
        if self.deliver(message) == 0 {
            return Err(BusError::NoResponders { subject });
        }
        match tokio::time::timeout(deadline, replies.recv()).await {
            Ok(Some(reply)) => reply.into_reply(),
            Ok(None) => Err(BusError::Closed),
            Err(_) => Err(BusError::Timeout { subject }),
        }
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscription, BusError> {
        let Subscribe { pattern, group, buffer } = subscribe;
        if buffer == 0 {
            return Err(BusError::NoBuffer);
        }
        let (sender, receiver) = mpsc::channel(buffer);
        let subscriber = Arc::new(Subscriber {
            id: self.shared.next.fetch_add(1, Ordering::Relaxed),
            group,
            sender,
            waiting_bytes: AtomicUsize::new(0),
            dropped: Arc::default(),
        });
        let dropped = subscriber.dropped.clone();
        let mut tree = self.shared.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.insert(pattern.tokens(), subscriber.clone());
        drop(tree);
        let leave = Leave { bus: Arc::downgrade(&self.shared), pattern, id: subscriber.id };
        // The subscriber's own sender would keep the channel open after the bus is gone.
        let subscriber = Arc::downgrade(&subscriber);
        let state = (receiver, subscriber, leave);
        let messages = stream::unfold(state, async |(mut receiver, subscriber, leave)| {
            let message: Message = receiver.recv().await?;
            if let Some(subscriber) = subscriber.upgrade() {
                subscriber.waiting_bytes.fetch_sub(message.bytes(), Ordering::AcqRel);
            }
            Some((message, (receiver, subscriber, leave)))
        });
        Ok(Subscription::new(messages, dropped))
    }

    fn stats(&self) -> BusStats {
        BusStats {
            published: self.shared.published.load(Ordering::Relaxed),
            delivered: self.shared.delivered.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBus").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Removes the inbox of a request when it ends, however it ends.
struct Inbox<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Inbox<'_> {
    fn drop(&mut self) {
        lock(&self.shared.inboxes).remove(&self.number);
    }
}

/// Removes a subscription from the tree when it is dropped.
struct Leave {
    bus: std::sync::Weak<Shared>,
    pattern: super::Pattern,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(shared) = self.bus.upgrade() {
            let mut tree = shared.tree.write().unwrap_or_else(PoisonError::into_inner);
            tree.remove(self.pattern.tokens(), self.id);
        }
    }
}

fn inbox_subject(number: u64) -> Option<Subject> {
    Subject::of(&[INBOX, &number.to_string()]).ok()
}

fn inbox_number(subject: &Subject) -> Option<u64> {
    subject.as_str().strip_prefix(INBOX)?.strip_prefix('.')?.parse().ok()
}

/// Nothing panics while the lock is held, and the map is whole between any two statements anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
