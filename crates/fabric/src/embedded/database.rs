//! The SQLite side: opening with all its checks, and the statements.
//!
//! One table holds the keys, one row the revision. This module knows nothing of batches, watches and leases'
//! deadlines.

use crate::state::Event;
use crate::state::{
    Compare, Entry, Key, KeySpan, LeaseId, Op, OpReply, Query, RANGE_BYTES_MAX, RangeReply,
    Revision, StateError, Target, Txn, TxnReply,
};
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "SKEI" in SQLite's application id: another program's database is never taken for ours.
const APPLICATION_ID: i32 = 0x534b_4549;

/// The format written by this release.
const FORMAT: u32 = 1;

/// Statements kept prepared: there are about a dozen.
const STATEMENTS: usize = 32;

/// Pages in the write-ahead log at which it is moved into the database: 8 MiB, so that the pages that every commit
/// touches are moved once per some hundred commits.
const CHECKPOINT_PAGES: u32 = 2000;

/// Page cache of one connection, KiB.
const CACHE_KIB: u32 = 16 * 1024;

const SCHEMA: &str = "
    CREATE TABLE kv (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,
        modified INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX kv_lease ON kv (lease) WHERE lease != 0;
    CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), revision INTEGER NOT NULL);
    INSERT INTO meta VALUES (0, 0);";

/// Why a statement failed, as far as the caller must tell causes apart.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request's own fault; nothing else is affected.
    Refused(StateError),
    /// No space.
    Full,
    /// The database is damaged.
    Corrupt(String),
    /// Anything else.
    Other(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        // Growing the shared index of the write-ahead log on a full disk is reported as an IO error.
        let shm_full = error.sqlite_error().map(|e| e.extended_code)
            == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ if shm_full => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// One connection.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens for writing; creates, checks and configures.
    pub(super) fn open(path: &Path, size_bytes_max: u64) -> Result<Self, StateError> {
        let failed = |error: rusqlite::Error| open_error(path, error);
        let connection = Connection::open(path).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        let format: u32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        let application: i32 =
            connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(failed)?;
        let tables: u32 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        let new = format == 0 && application == 0 && tables == 0;
        let corrupt = |what: String| StateError::Corrupt { path: path.to_path_buf(), what };
        if !new && application != APPLICATION_ID {
            return Err(corrupt("it is a database of another program".to_owned()));
        }
        if format > FORMAT {
            return Err(StateError::Newer {
                path: path.to_path_buf(),
                found: format,
                known: FORMAT,
            });
        }
        keep_plans(&connection).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB)).map_err(failed)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(failed)?;
        if new {
            let script = format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};
                 PRAGMA user_version = {FORMAT}; COMMIT;"
            );
            connection.execute_batch(&script).map_err(failed)?;
        } else {
            let verdict: String = connection
                .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                .map_err(failed)?;
            if verdict != "ok" {
                return Err(corrupt(verdict));
            }
        }
        let page: u32 =
            connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(failed)?;
        let pages = u32::try_from(size_bytes_max / u64::from(page.max(1))).unwrap_or(u32::MAX);
        connection.pragma_update(None, "max_page_count", pages).map_err(failed)?;
        Ok(Self { connection, path: path.to_path_buf() })
    }

    /// Opens for reading what another connection of this process writes.
    pub(super) fn open_reader(path: &Path) -> Result<Self, StateError> {
        let failed = |error: rusqlite::Error| open_error(path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        keep_plans(&connection).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB)).map_err(failed)?;
        Ok(Self { connection, path: path.to_path_buf() })
    }

    /// Which file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a transaction that will write.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        self.execute("BEGIN IMMEDIATE")
    }

    /// Shows it to all. It is in the write-ahead log then; bringing that to the disk is [`Log`](super::log::Log)'s.
    pub(super) fn commit(&self) -> Result<(), Failure> {
        self.execute("COMMIT")
    }

    /// Undoes what was not committed; does nothing outside a transaction.
    pub(super) fn rollback(&self) {
        if !self.connection.is_autocommit() {
            // A failed rollback leaves the transaction open, and the next BEGIN reports it.
            if let Err(error) = self.execute("ROLLBACK") {
                tracing::warn!(?error, "rollback failed");
            }
        }
    }

    /// Moves the write-ahead log into the database and cuts it.
    pub(super) fn checkpoint(&self) -> Result<(), Failure> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn execute(&self, sql: &str) -> Result<(), Failure> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    /// The revision as of this transaction.
    pub(super) fn revision(&self) -> Result<Revision, Failure> {
        let mut select =
            self.connection.prepare_cached("SELECT revision FROM meta WHERE id = 0")?;
        Ok(select.query_row([], |row| revision(row, 0))?)
    }

    /// Stores the revision.
    pub(super) fn set_revision(&self, revision: Revision) -> Result<(), Failure> {
        self.connection
            .prepare_cached("UPDATE meta SET revision = ?1 WHERE id = 0")?
            .execute([integer(revision.get())])?;
        Ok(())
    }

    /// Runs `read` in one snapshot.
    pub(super) fn snapshot<T>(
        &self,
        read: impl FnOnce(&Self, Revision) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.execute("BEGIN DEFERRED")?;
        let outcome = self.revision().and_then(|revision| read(self, revision));
        // Nothing was written, so ending the snapshot either way is the same.
        self.rollback();
        outcome
    }

    /// Reads what is committed now.
    pub(super) fn look(&self, query: &Query) -> Result<RangeReply, Failure> {
        match query.span.as_one() {
            Some(key) if query.limit > 0 => self.look_at(key, query.keys_only),
            _ => self.snapshot(|database, revision| database.range(query, revision)),
        }
    }

    /// One key and the revision in one statement, which is a snapshot by itself.
    fn look_at(&self, key: &[u8], keys_only: bool) -> Result<RangeReply, Failure> {
        let sql = if keys_only {
            "SELECT kv.key, x'', created, modified, version, lease, revision
             FROM meta LEFT JOIN kv ON kv.key = ?1 WHERE meta.id = 0"
        } else {
            "SELECT kv.key, value, created, modified, version, lease, revision
             FROM meta LEFT JOIN kv ON kv.key = ?1 WHERE meta.id = 0"
        };
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query([key])?;
        let missing = || Failure::Corrupt("the revision is missing".to_owned());
        let row = rows.next()?.ok_or_else(missing)?;
        let found = row.get_ref(0)? != ValueRef::Null;
        let entries = if found { vec![entry(row)?] } else { Vec::new() };
        Ok(RangeReply { entries, more: false, revision: revision(row, 6)? })
    }

    /// Compares and runs one of the lists. `revision` is the current one; the changes get the next. The changes
    /// are added to `events`, which is empty before. A refusal comes before the first change.
    pub(super) fn apply(
        &self,
        txn: &Txn,
        revision: Revision,
        lease_lives: impl Fn(LeaseId) -> Result<(), StateError>,
        events: &mut Vec<Event>,
    ) -> Result<TxnReply, Failure> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = succeeded && self.holds(compare)?;
        }
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        for op in ops {
            if let Op::Put { lease: Some(lease), .. } = op {
                lease_lives(*lease).map_err(Failure::Refused)?;
            }
        }
        let mut replies = Vec::with_capacity(ops.len());
        for op in ops {
            replies.push(self.operate(op, revision, events)?);
        }
        let revision = if events.is_empty() { revision } else { revision.next() };
        Ok(TxnReply { succeeded, revision, replies })
    }

    fn operate(
        &self,
        op: &Op,
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> Result<OpReply, Failure> {
        match op {
            Op::Put { key, value, lease } => {
                events.push(Event::Put(self.put(key, value, *lease, revision.next())?));
                Ok(OpReply::Put)
            }
            Op::Delete(span) => {
                let before = events.len();
                self.delete(span, events)?;
                Ok(OpReply::Deleted((events.len() - before) as u64))
            }
            Op::Range(query) => {
                let seen = if events.is_empty() { revision } else { revision.next() };
                Ok(OpReply::Range(self.range(query, seen)?))
            }
        }
    }

    fn holds(&self, compare: &Compare) -> Result<bool, Failure> {
        let sql = match compare.target {
            Target::Value(_) => {
                "SELECT key, value, created, modified, version, lease FROM kv WHERE key = ?1"
            }
            Target::Version(_) | Target::CreateRevision(_) | Target::ModRevision(_) => {
                "SELECT key, x'', created, modified, version, lease FROM kv WHERE key = ?1"
            }
        };
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query([compare.key.as_bytes()])?;
        let found = rows.next()?.map(entry).transpose()?;
        Ok(compare.holds(found.as_ref()))
    }

    fn put(
        &self,
        key: &Key,
        value: &Bytes,
        lease: Option<LeaseId>,
        revision: Revision,
    ) -> Result<Entry, Failure> {
        let at = integer(revision.get());
        let lease_number = integer(lease.map_or(0, LeaseId::get));
        // Three plain statements instead of one with ON CONFLICT and RETURNING: for that one, SQLite keeps a journal
        // of its own and copies every page that it touches.
        let before = self
            .connection
            .prepare_cached("SELECT created, version FROM kv WHERE key = ?1")?
            .query_row([key.as_bytes()], |row| Ok((self::revision(row, 0)?, natural(row, 1)?)))
            .optional()?;
        let (sql, created, version) = match before {
            None => ("INSERT INTO kv VALUES (?1, ?2, ?3, ?3, 1, ?4)", revision, 1),
            Some((created, version)) => (
                "UPDATE kv SET value = ?2, modified = ?3, version = version + 1, lease = ?4
                 WHERE key = ?1",
                created,
                version + 1,
            ),
        };
        self.connection.prepare_cached(sql)?.execute(params![
            key.as_bytes(),
            value.as_ref(),
            at,
            lease_number
        ])?;
        Ok(Entry {
            key: key.clone(),
            value: value.clone(),
            create_revision: created,
            mod_revision: revision,
            version,
            lease,
        })
    }

    fn delete(&self, span: &KeySpan, events: &mut Vec<Event>) -> Result<(), Failure> {
        if let Some(one) = span.as_one() {
            let count =
                self.connection.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([one])?;
            if count > 0 {
                events.push(Event::Deleted(stored_key(one)?));
            }
            return Ok(());
        }
        let sql = match span.end() {
            Some(_) => "DELETE FROM kv WHERE key >= ?1 AND key < ?2 RETURNING key",
            None => "DELETE FROM kv WHERE key >= ?1 AND ?2 IS NULL RETURNING key",
        };
        self.delete_returning(sql, params![span.start(), span.end()], events)
    }

    /// Deletes the keys of a lease.
    pub(super) fn delete_leased(
        &self,
        lease: LeaseId,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let sql = "DELETE FROM kv WHERE lease = ?1 AND lease != 0 RETURNING key";
        self.delete_returning(sql, params![integer(lease.get())], events)
    }

    /// Deletes the keys of all leases.
    pub(super) fn delete_all_leased(&self, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.delete_returning("DELETE FROM kv WHERE lease != 0 RETURNING key", [], events)
    }

    fn delete_returning(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let mut delete = self.connection.prepare_cached(sql)?;
        let mut rows = delete.query(params)?;
        let from = events.len();
        while let Some(row) = rows.next()? {
            events.push(Event::Deleted(stored_key(row.get_ref(0)?.as_blob().unwrap_or(b""))?));
        }
        // SQLite promises no order of returned rows; watchers are promised key order.
        events[from..].sort_unstable_by(|a, b| a.key().cmp(b.key()));
        Ok(())
    }

    /// Reads a span, as of this transaction.
    pub(super) fn range(&self, query: &Query, revision: Revision) -> Result<RangeReply, Failure> {
        if query.limit == 0 {
            return Err(Failure::Refused(StateError::invalid("a limit of 0")));
        }
        let sql = match (query.span.as_one().is_some(), query.span.end().is_some(), query.keys_only)
        {
            (true, _, false) => {
                "SELECT key, value, created, modified, version, lease FROM kv
                 WHERE key = ?1 AND ?2 IS NULL LIMIT ?3"
            }
            (true, _, true) => {
                "SELECT key, x'', created, modified, version, lease FROM kv
                 WHERE key = ?1 AND ?2 IS NULL LIMIT ?3"
            }
            (false, true, false) => {
                "SELECT key, value, created, modified, version, lease FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3"
            }
            (false, true, true) => {
                "SELECT key, x'', created, modified, version, lease FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3"
            }
            (false, false, false) => {
                "SELECT key, value, created, modified, version, lease FROM kv
                 WHERE key >= ?1 AND ?2 IS NULL ORDER BY key LIMIT ?3"
            }
            (false, false, true) => {
                "SELECT key, x'', created, modified, version, lease FROM kv
                 WHERE key >= ?1 AND ?2 IS NULL ORDER BY key LIMIT ?3"
            }
        };
        let mut select = self.connection.prepare_cached(sql)?;
        // One more than asked tells whether there is more.
        let limit = i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX);
        let mut rows = select.query(params![query.span.start(), query.span.end(), limit])?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            if entries.len() == query.limit || bytes >= RANGE_BYTES_MAX {
                return Ok(RangeReply { entries, more: true, revision });
            }
            let entry = entry(row)?;
            bytes += entry.key.as_bytes().len() + entry.value.len();
            entries.push(entry);
        }
        Ok(RangeReply { entries, more: false, revision })
    }

    /// The keys of a lease, in order.
    pub(super) fn leased_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Failure> {
        let mut select = self
            .connection
            .prepare_cached("SELECT key FROM kv WHERE lease = ?1 AND lease != 0 ORDER BY key")?;
        let mut rows = select.query([integer(lease.get())])?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            keys.push(stored_key(row.get_ref(0)?.as_blob().unwrap_or(b""))?);
        }
        Ok(keys)
    }
}

/// Has SQLite prepare a statement once, whatever values it runs with: else it prepares most of ours anew each time, which
/// takes longer than running them.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn open_error(path: &Path, error: rusqlite::Error) -> StateError {
    match Failure::from(error) {
        Failure::Refused(error) => error,
        Failure::Full => StateError::DiskFull,
        Failure::Corrupt(what) => StateError::Corrupt { path: path.to_path_buf(), what },
        Failure::Other(why) => StateError::Open { path: path.to_path_buf(), why },
    }
}

fn entry(row: &Row<'_>) -> Result<Entry, Failure> {
    let value = row.get_ref(1)?.as_blob().map_err(|error| Failure::Corrupt(error.to_string()))?;
    Ok(Entry {
        key: stored_key(row.get_ref(0)?.as_blob().unwrap_or(b""))?,
        value: Bytes::copy_from_slice(value),
        create_revision: revision(row, 2)?,
        mod_revision: revision(row, 3)?,
        version: natural(row, 4)?,
        lease: LeaseId::new(natural(row, 5)?),
    })
}

fn stored_key(bytes: &[u8]) -> Result<Key, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|error| Failure::Corrupt(error.to_string()))?;
    Key::new(text).map_err(|error| Failure::Corrupt(error.to_string()))
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    natural(row, column).map(Revision::new)
}

fn natural(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// SQLite's integers are signed; revisions and leases stay below half.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
