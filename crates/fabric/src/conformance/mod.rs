//! What any implementation of [`State`] and [`Bus`] must do: one suite for the embedded ones
//! and for those over etcd and NATS.
//!
//! Each property is an async function that takes a factory and panics where the property does not hold. The macros
//! [`state_conformance!`](crate::state_conformance) and [`bus_conformance!`](crate::bus_conformance) make a test
//! of each:
//! ```text
//! skein_fabric::state_conformance!(my_factory());
//! ```
//! Nothing here measures time: what must happen is awaited with a deadline, what must not happen is not waited for.

pub mod bus;
mod linear;
pub mod state;

use crate::bus::Bus;
use crate::state::State;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes stores for the suite.
#[async_trait]
pub trait StateFactory: Send + Sync {
    /// The store of this factory, empty when called first. Called again it is the same store, stopped and started:
    /// handles from before are dead, what was acknowledged is there, and watches and leases may not be.
    async fn start(&self) -> Arc<dyn State>;

    /// A short time to live that the implementation grants as it is.
    fn ttl(&self) -> Duration;
}

/// Makes buses for the suite.
#[async_trait]
pub trait BusFactory: Send + Sync {
    /// A handle of this factory's bus. Several handles reach each other.
    async fn connect(&self) -> Arc<dyn Bus>;
}

/// Awaits what must happen.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// A test for each property of a store. The argument is an expression for a new
/// [`StateFactory`](crate::conformance::StateFactory).
#[macro_export]
macro_rules! state_conformance {
    ($factory:expr) => {
        $crate::state_conformance!(@ $factory;
            keys_have_a_history
            ranges_are_paged
            comparisons_decide
            transactions_are_whole
            transactions_are_bounded
            one_writer_wins_each_revision
            concurrent_transactions_keep_sums
            watches_see_all_in_order
            watches_resume
            compacted_history_is_refused
            leases_end_with_their_keys
            kept_leases_live
            revoked_leases_are_gone
            leases_can_be_left
            restarts_keep_everything
            histories_are_linearizable
        );
    };
    (@ $factory:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::state::$name(&$factory).await;
            }
        )*
    };
}

/// A test for each property of a bus. The argument is an expression for a new
/// [`BusFactory`](crate::conformance::BusFactory).
#[macro_export]
macro_rules! bus_conformance {
    ($factory:expr) => {
        $crate::bus_conformance!(@ $factory;
            messages_reach_who_subscribed
            patterns_route
            groups_share
            requests_are_answered
            requests_without_responders_fail_at_once
            requests_time_out
            errors_travel
            headers_travel
            messages_are_bounded
            slow_subscribers_lose_and_know_it
            dropped_subscriptions_are_gone
        );
    };
    (@ $factory:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::bus::$name(&$factory).await;
            }
        )*
    };
}
