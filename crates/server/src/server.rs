//! The server: opens what it needs, answers, leads when it is elected.

use crate::app::{App, AppParts};
use crate::auth::Token;
use crate::history::{History, HistoryError};
use crate::{bootstrap, controller, routes, sweeper};
use axum::Router;
use axum::serve::Listener;
use camino::Utf8PathBuf;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use skein_fabric::{Bus, BusError, Election, Queue, State};
use skein_registry::RegistryError;
use skein_shell::{Tasks, report};
use skein_vmm::ImageStore;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

/// How long the tasks of a server may take to end.
const SHUTDOWN_BUDGET: Duration = Duration::from_secs(5);
/// How long an answer that is being given may still take when the server stops.
const LAST_ANSWER: Duration = Duration::from_millis(250);
/// Between two attempts to be elected after a failure.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(500);
/// Name of the leader's election.
const ELECTION: &str = "leader";

/// What a server is told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// File of the history.
    pub history: Utf8PathBuf,
    /// Id of the cloud.
    pub cloud: String,
    /// Who may use it.
    pub token: Token,
    /// How long a leader may be silent before another leads.
    pub lease: Duration,
}

/// What a server stands on.
#[derive(Debug, Clone)]
pub struct ServerParts {
    /// Truth.
    pub state: Arc<dyn State>,
    /// Messages.
    pub bus: Arc<dyn Bus>,
    /// Work.
    pub queue: Queue,
    /// What machines boot.
    pub images: ImageStore,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error(
        "listening on {address}: another program may use the port; choose one with --listen ADDRESS:PORT"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The history cannot be opened.
    #[error("the history")]
    History {
        /// Why.
        #[from]
        source: HistoryError,
    },
    /// The records cannot be read.
    #[error("the records")]
    Registry {
        /// Why.
        #[from]
        source: RegistryError,
    },
    /// The bus does not work.
    #[error("the bus")]
    Bus {
        /// Why.
        #[from]
        source: BusError,
    },
}

impl ServerError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "PORT_TAKEN",
            Self::History { .. } => "HISTORY_UNUSABLE",
            Self::Registry { .. } => "RECORDS_UNUSABLE",
            Self::Bus { .. } => "BUS_UNUSABLE",
        }
    }
}

/// A running server. Dropping it ends its tasks where they stand.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// In the order in which they end: what works, what sends its events, what writes those down.
    groups: [Tasks; 3],
}

impl Server {
    /// Opens what it needs and begins to answer.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ServerConfig, parts: ServerParts) -> Result<Self, ServerError> {
        let listen = |source| ServerError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let history = History::open(config.history.as_std_path())?;
        let groups = [Tasks::new(), Tasks::new(), Tasks::new()];
        let [tasks, sending, recording] = groups.clone();
        let app = App::start(AppParts {
            cloud: config.cloud,
            address,
            token: config.token,
            parts,
            history,
            tasks: tasks.clone(),
            sending,
            recording,
        })
        .await?;
        bootstrap::ensure(&app).await?;
        tasks.spawn(serve(listener, app.clone()));
        tasks.spawn(govern(app, config.lease));
        info!(%address, "server listens");
        Ok(Self { address, groups })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers no more, and ends its tasks.
    pub async fn shutdown(self) {
        for tasks in &self.groups {
            tasks.shutdown(SHUTDOWN_BUDGET).await;
        }
    }

    /// Ends its tasks where they stand, as a crash would. For tests of faults.
    pub async fn crash(self) {
        for tasks in &self.groups {
            tasks.crash().await;
        }
    }
}

/// Accepts connections, each a task of the server's own: when its tasks end, nobody is answered from what they kept.
async fn serve(mut listener: TcpListener, app: App) {
    let (stop, tasks) = (app.tasks.stop_token().clone(), app.tasks.clone());
    let router = routes::router(app);
    loop {
        let (connection, _) = tokio::select! {
            () = stop.cancelled() => return,                              // cancel-safe: token
            accepted = Listener::accept(&mut listener) => accepted,       // cancel-safe: as TcpListener's
        };
        // Answers are small and waited for.
        let _ = connection.set_nodelay(true);
        tasks.spawn(converse(connection, router.clone(), stop.clone()));
    }
}

/// Answers the requests of one connection.
async fn converse(connection: TcpStream, router: Router, stop: CancellationToken) {
    let answer = service_fn(move |request| router.clone().oneshot(request));
    let served =
        http1::Builder::new().serve_connection(TokioIo::new(connection), answer).with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,             // only this task waits for it; polled again below
        () = stop.cancelled() => {                    // cancel-safe: token
            served.as_mut().graceful_shutdown();
            // Open streams and calls would hold a graceful end for minutes: their clients come back.
            tokio::time::timeout(LAST_ANSWER, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}

/// Campaigns, and leads while elected; again and again until the server stops.
async fn govern(app: App, lease: Duration) {
    let stop = app.tasks.stop_token().clone();
    let election = Election::new(app.state.clone());
    loop {
        let campaign = election.campaign(ELECTION, &app.cloud, lease);
        let leadership = tokio::select! {
            () = stop.cancelled() => return,             // cancel-safe: token
            leadership = campaign => leadership,         // a candidacy that is dropped ends with its lease
        };
        match leadership {
            Ok(leadership) => {
                let sweeping = sweeper::run(&app);
                tokio::select! {
                    () = controller::lead(&app, &leadership) => {}  // each step is one transaction
                    () = sweeping => {}                             // as above
                }
                // So that another need not wait for the lease to run out.
                if let Err(error) = leadership.resign().await {
                    warn!(error = %report::chain(&error), "the leadership was not handed over");
                }
            }
            Err(error) => {
                warn!(error = %report::chain(&error), "the campaign failed");
                tokio::time::sleep(CAMPAIGN_RETRY).await;
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}
