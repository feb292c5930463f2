//! The recorded history: what happened, in order, in a file of its own.
//!
//! History is not truth: events reach this log over the bus, in the order in which they arrive, and a crash may lose
//! the last instant of it (`synchronous=NORMAL`). It is bounded: the oldest lines go when there are too many.

use rusqlite::{Connection, params};
use skein_model::Event;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{error, warn};

/// Lines kept: a day of one job a second with its three events, and about 60 MiB.
const LINES_MAX: u64 = 300_000;
/// The oldest lines are removed each time so many have been added.
const TRIM_EVERY: u64 = 10_000;
/// Commands waiting for the log's thread: a burst of 64 batches; whoever has more waits.
const INBOX: usize = 64;
/// Lines that a follower may fall behind before it must read pages again.
const FOLLOW_BUFFER: usize = 4096;

/// Why the history cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be opened.
    #[error("opening the history {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// It could not be read.
    #[error("reading the history")]
    Read {
        /// Why.
        source: rusqlite::Error,
    },
    /// Its thread has ended.
    #[error("the history is closed")]
    Closed,
}

/// A line and its number.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its number, from 1, growing.
    pub seq: u64,
    /// What happened.
    pub event: Arc<Event>,
}

/// A page of history.
#[derive(Debug, Clone)]
pub struct Page {
    /// Oldest first.
    pub lines: Vec<Line>,
    /// Number of the oldest line kept.
    pub oldest: u64,
    /// Number of the newest line.
    pub newest: u64,
}

enum Command {
    Append(Vec<Event>),
    Read { since: u64, limit: u32, reply: oneshot::Sender<Result<Page, HistoryError>> },
}

/// Handle of the log. Cheap to clone; the file is closed when the last is dropped.
#[derive(Debug, Clone)]
pub struct History {
    commands: mpsc::Sender<Command>,
    follow: broadcast::Sender<Line>,
}

impl History {
    /// Opens or creates the log, and starts its thread.
    ///
    /// # Errors
    /// [`HistoryError::Open`].
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let fail = |source| HistoryError::Open { path: path.to_owned(), source };
        let database = Connection::open(path).map_err(fail)?;
        database
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
                 CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, json TEXT NOT NULL);",
            )
            .map_err(fail)?;
        let next = database
            .query_row("SELECT coalesce(max(seq), 0) + 1 FROM event", [], |row| row.get(0))
            .map_err(fail)?;
        let (commands, inbox) = mpsc::channel(INBOX);
        let (follow, _) = broadcast::channel(FOLLOW_BUFFER);
        let writer = Writer { database, next, untrimmed: 0, follow: follow.clone() };
        thread::Builder::new()
            .name("history".into())
            .spawn(move || writer.run(inbox))
            .map_err(|_| HistoryError::Closed)?;
        Ok(Self { commands, follow })
    }

    /// Adds events. Waits while the log is behind.
    pub async fn append(&self, events: Vec<Event>) {
        if self.commands.send(Command::Append(events)).await.is_err() {
            warn!("the history is closed; events are lost");
        }
    }

    /// Lines after number `since`, at most `limit`.
    ///
    /// # Errors
    /// [`HistoryError::Read`], [`HistoryError::Closed`].
    pub async fn read(&self, since: u64, limit: u32) -> Result<Page, HistoryError> {
        // SQLite's numbers end there: no line has a greater one.
        let since = since.min(i64::MAX as u64);
        let (reply, answer) = oneshot::channel();
        let command = Command::Read { since, limit, reply };
        self.commands.send(command).await.map_err(|_| HistoryError::Closed)?;
        answer.await.map_err(|_| HistoryError::Closed)?
    }

    /// Lines as they are added. Subscribe before reading pages, and pass over what both show.
    pub fn follow(&self) -> broadcast::Receiver<Line> {
        self.follow.subscribe()
    }
}

struct Writer {
    database: Connection,
    next: u64,
    untrimmed: u64,
    follow: broadcast::Sender<Line>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        while let Some(command) = inbox.blocking_recv() {
            match command {
                Command::Append(events) => {
                    if let Err(error) = self.append(events) {
                        error!(%error, "events could not be recorded");
                    }
                }
                Command::Read { since, limit, reply } => {
                    let page = self.read(since, limit);
                    let _ = reply.send(page.map_err(|source| HistoryError::Read { source }));
                }
            }
        }
    }

    fn append(&mut self, events: Vec<Event>) -> Result<(), rusqlite::Error> {
        let transaction = self.database.transaction()?;
        let mut lines = Vec::with_capacity(events.len());
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO event (seq, json) VALUES (?1, ?2)")?;
            for event in events {
                let json = serde_json::to_string(&event)
                    .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
                let seq = self.next + lines.len() as u64;
                insert.execute(params![seq, json])?;
                lines.push(Line { seq, event: Arc::new(event) });
            }
        }
        self.untrimmed += lines.len() as u64;
        let last = self.next + lines.len() as u64;
        if self.untrimmed >= TRIM_EVERY {
            self.untrimmed = 0;
            transaction
                .execute("DELETE FROM event WHERE seq < ?1", [last.saturating_sub(LINES_MAX)])?;
        }
        transaction.commit()?;
        self.next = last;
        for line in lines {
            // Nobody follows: nothing to do.
            let _ = self.follow.send(line);
        }
        Ok(())
    }

    fn read(&self, since: u64, limit: u32) -> Result<Page, rusqlite::Error> {
        let oldest = self.database.query_row(
            "SELECT coalesce(min(seq), ?1) FROM event",
            [self.next],
            |row| row.get(0),
        )?;
        let mut select = self
            .database
            .prepare_cached("SELECT seq, json FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
        let rows = select.query_map(params![since, limit], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut lines = Vec::new();
        for row in rows {
            let (seq, json) = row?;
            match serde_json::from_str(&json) {
                Ok(event) => lines.push(Line { seq, event: Arc::new(event) }),
                // A newer release may have written kinds that this one does not know.
                Err(error) => warn!(seq, %error, "a line of history cannot be read"),
            }
        }
        Ok(Page { lines, oldest, newest: self.next - 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_model::{EventKind, EventSubject, Timestamp};

    fn event(at: u64) -> Event {
        Event {
            at: Timestamp::from_micros(at),
            subject: EventSubject::default(),
            kind: EventKind::NodeJoined,
        }
    }

    #[tokio::test]
    async fn lines_are_numbered_kept_and_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let history = History::open(&path).unwrap();
        let mut follow = history.follow();
        history.append(vec![event(1), event(2)]).await;
        assert_eq!(follow.recv().await.unwrap().seq, 1);
        assert_eq!(follow.recv().await.unwrap().event.at, Timestamp::from_micros(2));
        drop(history);
        let mut again = History::open(&path);
        while again.is_err() {
            again = History::open(&path);
        }
        let history = again.unwrap();
        history.append(vec![event(3)]).await;
        let page = history.read(1, 10).await.unwrap();
        assert_eq!(page.lines.iter().map(|l| l.seq).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((page.oldest, page.newest), (1, 3));
        assert_eq!(history.read(0, 1).await.unwrap().lines.len(), 1);
    }
}
