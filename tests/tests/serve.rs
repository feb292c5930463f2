//! What the cloud does when nothing goes wrong.

use bytes::Bytes;
use skein_api::JobOptions;
use skein_tests::{Setup, run, service};

#[test]
fn a_call_starts_a_machine_from_zero() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        assert_eq!(world.machines("echo").await?.len(), 0);
        let reply =
            world.client().call("echo", Bytes::from("hello"), &JobOptions::default()).await?;
        assert_eq!(reply.body, "hello");
        let machines = world.ready("echo", 1).await?;
        assert_eq!(reply.headers["skein-machine"], machines[0].id.as_str());
        world.submit("echo", "again", "/?x=1").await?;
        world.settle_done().await
    });
}
