//! The embedded store and the bus of one process pass the suite.

use async_trait::async_trait;
use skein_fabric::conformance::{BusFactory, StateFactory};
use skein_fabric::{Bus, EmbeddedOptions, EmbeddedState, LocalBus, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

struct Embedded {
    directory: tempfile::TempDir,
    open: Mutex<Option<EmbeddedState>>,
}

impl Embedded {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, open: Mutex::new(None) }
    }
}

#[async_trait]
impl StateFactory for Embedded {
    async fn start(&self) -> Arc<dyn State> {
        let mut open = self.open.lock().await;
        if let Some(before) = open.take() {
            before.close().await;
        }
        let state = EmbeddedState::open(self.directory.path(), EmbeddedOptions::default());
        let state = state.expect("the store opens");
        *open = Some(state.clone());
        Arc::new(state)
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }
}

mod state {
    skein_fabric::state_conformance!(super::Embedded::new());
}

#[derive(Default)]
struct Local(LocalBus);

#[async_trait]
impl BusFactory for Local {
    async fn connect(&self) -> Arc<dyn Bus> {
        Arc::new(self.0.clone())
    }
}

mod bus {
    skein_fabric::bus_conformance!(super::Local::default());
}
