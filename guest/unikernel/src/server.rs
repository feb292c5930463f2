//! The HTTP server: one task per connection, at most `capacity` requests inside the service.
//!
//! ```text
//!            first byte        complete         slot free
//! idle(75 s) ---------> read ----------> wait ----------> serve --> answer --> idle
//!   \--- end of stream, stop ---> close     \--- refused: answer, close
//! ```

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::{Poll, Waker};
use core::time::Duration;

use skein_wire::http::{Head, HttpDate, Limits, Refusal, Request, RequestReader, Response, Step};

use crate::clock::{self, within};
use crate::host::{self, COUNTERS, count};
use crate::net::{Broken, Connection};
use crate::service::Service;
use crate::sync::Mutex;

/// 75 s without a request: longer than clients keep idle connections, so that they close first.
const IDLE: Duration = Duration::from_secs(75);
/// 10 s from the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);
/// 30 s without a byte of progress in a body, in or out.
const PROGRESS: Duration = Duration::from_secs(30);
/// 2 s for the peer to take the last answer and close its side.
const LINGER: Duration = Duration::from_secs(2);

const HEALTH: &str = "/_skein/health";
const OWN_PATHS: &str = "/_skein/";

/// Whether the machine is to stop: no new requests, then no connections.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Ends idle connections, and the others after the answer they wait for. All tasks must be woken
/// afterwards.
pub(crate) fn stop() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Whether [`stop`] was called.
pub(crate) fn is_stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

/// Places inside the service, handed out in the order of asking.
struct Slots {
    free: usize,
    waiting: VecDeque<Arc<Ticket>>,
}

/// One who waits for a place.
struct Ticket {
    granted: AtomicBool,
    waker: Mutex<Waker>,
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots { free: 0, waiting: VecDeque::new() });

/// Bytes of request bodies that may still be held.
static BODY_ROOM: AtomicUsize = AtomicUsize::new(0);

/// Sets the number of requests served at a time, and the memory for request bodies, bytes.
pub(crate) fn set_limits(capacity: u16, body_room: usize) {
    SLOTS.lock().free = usize::from(capacity);
    BODY_ROOM.store(body_room, Ordering::Relaxed);
}

/// A place inside the service. Dropping it hands it to the next.
struct Slot;

impl Slot {
    async fn take() -> Self {
        let mut ticket: Option<PendingTicket> = None;
        core::future::poll_fn(|context| {
            let mut slots = SLOTS.lock();
            if let Some(PendingTicket(ticket)) = &ticket {
                if ticket.granted.load(Ordering::Relaxed) {
                    return Poll::Ready(());
                }
                ticket.waker.lock().clone_from(context.waker());
                return Poll::Pending;
            }
            if slots.free > 0 && slots.waiting.is_empty() {
                slots.free -= 1;
                return Poll::Ready(());
            }
            let waker = Mutex::new(context.waker().clone());
            let new = Arc::new(Ticket { granted: AtomicBool::new(false), waker });
            slots.waiting.push_back(Arc::clone(&new));
            ticket = Some(PendingTicket(new));
            Poll::Pending
        })
        .await;
        // From here on the place is this value's to give back.
        if let Some(PendingTicket(ticket)) = &ticket {
            ticket.granted.store(false, Ordering::Relaxed);
        }
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = SLOTS.lock();
        match slots.waiting.pop_front() {
            Some(ticket) => {
                ticket.granted.store(true, Ordering::Relaxed);
                ticket.waker.lock().wake_by_ref();
            }
            None => slots.free += 1,
        }
    }
}

/// A ticket that is withdrawn if its owner goes away.
struct PendingTicket(Arc<Ticket>);

impl Drop for PendingTicket {
    fn drop(&mut self) {
        SLOTS.lock().waiting.retain(|ticket| !Arc::ptr_eq(ticket, &self.0));
        if self.0.granted.load(Ordering::Relaxed) {
            drop(Slot);
        }
    }
}

/// Memory set aside for a request body, bytes. Dropping it gives it back.
struct Reservation(usize);

impl Reservation {
    /// Makes it at least `bytes` large. `false` when there is no room.
    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.0);
        let room = BODY_ROOM.load(Ordering::Relaxed);
        let Some(left) = room.checked_sub(more) else { return false };
        BODY_ROOM.store(left, Ordering::Relaxed);
        self.0 += more;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        BODY_ROOM.fetch_add(self.0, Ordering::Relaxed);
    }
}

/// Why no request came of what was read.
enum Unread {
    /// The peer closed between requests, or the machine stops.
    End,
    /// The connection broke in mid-request.
    Broken,
    /// What was sent is not acceptable.
    Refused(Refusal),
    /// Too slow.
    Timeout,
    /// There is no memory for the body now.
    NoMemory,
}

impl From<Broken> for Unread {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

/// What feeding bytes to the reader came to, without its borrow.
enum Fed {
    More,
    Head { length: Option<usize>, expects_continue: bool },
    Request(Request),
    Refused(Refusal),
    NoMemory,
}

impl Fed {
    fn of(head: &Head) -> Self {
        Self::Head { length: head.content_length(), expects_continue: head.expects_continue() }
    }
}

/// One connection and what has been read of its next request.
struct Session {
    connection: Connection,
    reader: RequestReader,
    reservation: Reservation,
    is_chunked: bool,
}

impl Session {
    /// Feeds what has arrived. While nothing of a request is there, a stop ends the wait.
    async fn receive(&mut self) -> Result<Option<Fed>, Broken> {
        let Self { connection, reader, reservation, is_chunked } = self;
        core::future::poll_fn(|context| {
            if is_stopping() && reader.is_idle() {
                return Poll::Ready(Ok(None));
            }
            connection.poll_receive(context, |bytes| feed(reader, reservation, *is_chunked, bytes))
        })
        .await
    }

    async fn read_request(&mut self) -> Result<Request, Unread> {
        let mut in_body = false;
        loop {
            let limit = match (self.reader.is_idle(), in_body) {
                (_, true) => PROGRESS,
                (true, false) => IDLE,
                (false, false) => HEAD,
            };
            let idle = self.reader.is_idle() && !in_body;
            self.connection.set_idle(idle);
            let received = within(limit, self.receive()).await;
            self.connection.set_idle(false);
            let fed = match received {
                None if idle => return Err(Unread::End),
                None => return Err(Unread::Timeout),
                Some(Err(Broken)) if idle => return Err(Unread::End),
                Some(Err(broken)) => return Err(broken.into()),
                Some(Ok(None)) if idle => return Err(Unread::End),
                Some(Ok(None)) => return Err(Unread::Broken),
                Some(Ok(Some(fed))) => fed,
            };
            match fed {
                Fed::More => {}
                Fed::Request(request) => return Ok(request),
                Fed::Refused(refusal) => return Err(Unread::Refused(refusal)),
                Fed::NoMemory => return Err(Unread::NoMemory),
                Fed::Head { length, expects_continue } => {
                    in_body = true;
                    self.is_chunked = length.is_none();
                    if !self.reservation.grow_to(length.unwrap_or(0)) {
                        return Err(Unread::NoMemory);
                    }
                    if length == Some(0) {
                        // Complete without another byte.
                        if let Ok((_, Step::Request(request))) = self.reader.feed(&[]) {
                            return Ok(request);
                        }
                    }
                    if expects_continue {
                        self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                    }
                }
            }
        }
    }

    async fn send(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let sent = within(PROGRESS, self.connection.send(bytes)).await.ok_or(Broken)??;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Sends an answer. Head and body are in the send buffer before anything leaves, so a small
    /// answer is one frame.
    async fn respond(
        &self,
        response: &Response,
        keep_alive: bool,
        with_body: bool,
    ) -> Result<(), Broken> {
        if response.status() >= 400 {
            count(&COUNTERS.errors);
        }
        let mut head = Vec::with_capacity(256);
        let date = clock::unix_time().map(|time| HttpDate(time.as_secs()));
        response.encode_head(keep_alive, date, &mut head);
        self.send(&head).await?;
        if with_body && response.may_have_body() {
            self.send(response.body()).await?;
        }
        Ok(())
    }

    /// Answers what could not be read, where an answer makes sense.
    async fn refuse(&self, unread: &Unread) {
        let response = match unread {
            Unread::End => return,
            Unread::Broken => {
                count(&COUNTERS.errors);
                return;
            }
            Unread::Refused(refusal) => {
                Response::error(refusal.status(), refusal.code(), &alloc::format!("{refusal}"))
            }
            Unread::Timeout => {
                Response::error(408, "REQUEST_TIMEOUT", "the request did not arrive in time")
            }
            Unread::NoMemory => Response::error(
                503,
                "MEMORY_EXHAUSTED",
                "no memory for the request body now; try again",
            )
            .with_header("retry-after", "1"),
        };
        // The connection ends anyway.
        let _ = self.respond(&response, false, true).await;
    }

    /// Serves one request. Returns whether the connection goes on.
    async fn serve(&self, request: Request, service: &Service) -> Result<bool, Broken> {
        let keep_alive = request.keep_alive();
        let with_body = request.method() != "HEAD";
        let response = if request.path().starts_with(OWN_PATHS) {
            own(&request)
        } else {
            let slot = Slot::take().await;
            if self.connection.is_broken() {
                return Err(Broken);
            }
            COUNTERS.in_service.fetch_add(1, Ordering::Relaxed);
            let response = service.answer(request).await;
            COUNTERS.in_service.fetch_sub(1, Ordering::Relaxed);
            count(&COUNTERS.requests);
            drop(slot);
            response
        };
        let response = if response.body().len() > host::config().body {
            log::error!("the service's answer has {} bytes", response.body().len());
            Response::error(
                500,
                "RESPONSE_TOO_LARGE",
                "the answer is longer than this machine may send",
            )
        } else {
            response
        };
        let keep_alive = keep_alive && !is_stopping();
        self.respond(&response, keep_alive, with_body).await?;
        Ok(keep_alive)
    }
}

fn feed(
    reader: &mut RequestReader,
    reservation: &mut Reservation,
    is_chunked: bool,
    bytes: &[u8],
) -> (usize, Fed) {
    // A chunked body announces no length. Twice what there will be: a vector that grows exists
    // twice for a moment.
    if is_chunked && !reservation.grow_to(2 * (reader.body_held() + bytes.len())) {
        return (0, Fed::NoMemory);
    }
    match reader.feed(bytes) {
        Ok((used, Step::More)) => (used, Fed::More),
        Ok((used, Step::Head(head))) => (used, Fed::of(head)),
        Ok((used, Step::Request(request))) => (used, Fed::Request(request)),
        Err(refusal) => (0, Fed::Refused(refusal)),
    }
}

/// Answers requests to the machine itself.
fn own(request: &Request) -> Response {
    match (request.method(), request.path()) {
        // A POST with a body goes the way of a job up to the service's door: hosts rehearse with it.
        ("GET" | "HEAD" | "POST", HEALTH) => Response::text("ok\n"),
        (_, HEALTH) => Response::error(405, "METHOD_NOT_ALLOWED", "use GET or POST")
            .with_header("allow", "GET, POST"),
        _ => Response::error(404, "NOT_FOUND", "the machine has no such path"),
    }
}

/// Serves a connection until it ends.
pub(crate) async fn run(connection: Connection, service: Rc<Service>) {
    let limits = Limits { body: host::config().body, ..Limits::default() };
    let mut session = Session {
        connection,
        reader: RequestReader::new(limits),
        reservation: Reservation(0),
        is_chunked: false,
    };
    loop {
        match session.read_request().await {
            Ok(request) => match session.serve(request, &service).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(Broken) => {
                    count(&COUNTERS.errors);
                    return;
                }
            },
            Err(unread) => {
                session.refuse(&unread).await;
                break;
            }
        }
        session.reservation = Reservation(0);
        session.is_chunked = false;
    }
    session.connection.finish();
    within(LINGER, session.connection.closed()).await;
}
