//! History: pages of it, and as it happens.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::Query;
use crate::scope::Scope;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use futures_util::Stream;
use serde::Deserialize;
use skein_api::{Code, ErrorBody, EventLine, EventPage};
use skein_model::{Event, ProjectName};
use std::convert::Infallible;
use tokio::sync::{broadcast, mpsc};

/// Lines read at a time for a follower that begins in the past.
const CATCH_UP_PAGE: u32 = 500;
/// Lines on their way to one follower.
const FOLLOWER_BUFFER: usize = 64;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    /// After this line; from the oldest unless given
    #[serde(default)]
    since: u64,
    /// At most so many lines, 1 to 1,000; 100 unless given
    #[serde(default)]
    limit: Option<u32>,
}

/// Read history, oldest first
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Range),
    responses((status = 200, body = EventPage), (status = 401, body = ErrorBody)))]
pub(crate) async fn page(
    State(app): State<App>,
    scope: Scope,
    Query(range): Query<Range>,
) -> Answer<Json<EventPage>> {
    let limit = range.limit.unwrap_or(100).clamp(1, 1000);
    let failed = |error| Failure::new(Code::Internal, skein_shell::report::chain(&error));
    let mut since = range.since;
    // A page without a line of the project is not the end: the next one may have some.
    loop {
        let page = app.history.read(since, limit).await.map_err(failed)?;
        let (last, oldest) = (page.lines.is_empty(), page.oldest);
        let next = page.lines.last().map_or(page.newest, |line| line.seq);
        let lines = page.lines.into_iter().filter(|line| concerns(&line.event, scope.only()));
        let lines = lines.map(|line| EventLine::new(line.seq, (*line.event).clone()));
        let events: Vec<EventLine> = lines.collect();
        if last || !events.is_empty() {
            return Ok(Json(EventPage { events, next, oldest }));
        }
        since = next;
    }
}

/// Whether a line may be shown to who asks for one project, or for all.
fn concerns(event: &Event, only: Option<&ProjectName>) -> bool {
    only.is_none_or(|project| event.subject.project.as_ref() == Some(project))
}

/// Follow history: server-sent events, each with its number as id; `Last-Event-ID` resumes
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", params(Range),
    responses((status = 200, description = "An endless stream of EventLine", content_type = "text/event-stream")))]
pub(crate) async fn stream(
    State(app): State<App>,
    scope: Scope,
    Query(range): Query<Range>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Line, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let (lines, out) = mpsc::channel(FOLLOWER_BUFFER);
    let stop = app.tasks.stop_token().clone();
    let since = last.unwrap_or(range.since);
    let copy = app.clone();
    app.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}              // cancel-safe: token
            () = follow(copy, scope, since, lines) => {}    // the follower resumes by its last id
        }
    });
    let stream = futures_util::stream::unfold(out, |mut out| async {
        out.recv().await.map(|line| (Ok(line), out))
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// Sends lines until the follower leaves.
async fn follow(app: App, scope: Scope, mut since: u64, lines: mpsc::Sender<Line>) {
    loop {
        // Subscribed first: what is added while pages are read comes again, and is passed over by its number.
        let mut live = app.history.follow();
        loop {
            let Ok(page) = app.history.read(since, CATCH_UP_PAGE).await else { return };
            if page.lines.is_empty() {
                break;
            }
            for line in page.lines {
                since = line.seq;
                if send(&lines, &scope, line.seq, &line.event).await.is_err() {
                    return;
                }
            }
        }
        loop {
            let line = tokio::select! {
                line = live.recv() => line,                  // cancel-safe: broadcast
                () = lines.closed() => return,               // cancel-safe: it only watches
            };
            match line {
                Ok(line) if line.seq <= since => {}
                Ok(line) => {
                    since = line.seq;
                    if send(&lines, &scope, line.seq, &line.event).await.is_err() {
                        return;
                    }
                }
                // Too slow for the live lines: read pages again.
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

async fn send(
    lines: &mpsc::Sender<Line>,
    scope: &Scope,
    seq: u64,
    event: &Event,
) -> Result<(), ()> {
    if !concerns(event, scope.only()) {
        return Ok(());
    }
    let line = Line::default().id(seq.to_string()).json_data(EventLine::new(seq, event.clone()));
    match line {
        Ok(line) => lines.send(line).await.map_err(|_| ()),
        Err(_) => Ok(()),
    }
}
