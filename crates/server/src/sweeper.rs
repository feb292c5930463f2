//! The leader's clock for jobs: deadlines, back-offs, orphaned claims, retention; and the removal of what nobody needs.

use crate::app::{App, queue_name};
use skein_shell::{now, report};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// However quiet it is, queues are swept after this long: the end of a lease is not foreseen.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Between two sweeps, however much is put off: each call has a deadline, and calls come by the thousand.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);
/// Blobs that no job needs are looked for this often.
const BLOBS_EVERY: Duration = Duration::from_secs(60);
/// Files of images that no image needs are removed after this long: an upload may be under way.
const IMAGES_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Sweeps until it is dropped.
pub(crate) async fn run(app: &App) {
    let mut blobs_at = Instant::now() + BLOBS_EVERY;
    loop {
        let begun = tokio::time::Instant::now();
        let mut wait = SWEEP_EVERY;
        match app.queue.sweep(now()).await {
            Ok(swept) => wait = swept.next.map_or(wait, |at| at.since(now()).min(wait)),
            Err(error) => warn!(error = %report::chain(&error), "sweeping the queues failed"),
        }
        abandon_removed(app).await;
        if Instant::now() >= blobs_at {
            blobs_at = Instant::now() + BLOBS_EVERY;
            sweep_blobs(app).await;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}         // cancel-safe: timer
            () = app.queue.wait_put_off() => {}         // cancel-safe: a hint
        }
        tokio::time::sleep_until(begun + SWEEP_PAUSE).await;
    }
}

/// Gives up the jobs of services that are no more: a server may have died between removing a service and its jobs.
async fn abandon_removed(app: &App) {
    let Ok(queues) = app.queue.queues().await else { return };
    for queue in queues {
        let key = (queue.project.clone(), queue.service.clone());
        // Before the look: a service that is made after it keeps its jobs.
        let at = now();
        if app.mirror.read(|view| view.services.contains_key(&key)) {
            continue;
        }
        let service =
            skein_policy::ServiceKey { project: queue.project.clone(), service: queue.service };
        match app.queue.depth(&queue_name(&service)).await {
            Ok(depth) if depth.waiting + depth.delayed > 0 => {
                if let Err(error) = app.abandon(&service, at).await {
                    warn!(%service, ?error, "jobs of a removed service could not be given up");
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

async fn sweep_blobs(app: &App) {
    if let Err(error) = app.queue.sweep_blobs().await {
        warn!(error = %report::chain(&error), "sweeping blobs failed");
    }
    let images = app.images.clone();
    match tokio::task::spawn_blocking(move || images.sweep(IMAGES_KEPT)).await {
        Ok(Ok(removed)) => debug!(removed, "files of images swept"),
        Ok(Err(error)) => warn!(error = %report::chain(&error), "sweeping images failed"),
        Err(error) => warn!(%error, "sweeping images failed"),
    }
}
