//! Nodes by which networks leave: they stay in the records as long as something does.

use crate::{network, project, refused};
use anyhow::{Context, Result, bail, ensure};
use skein_api::{
    Client, ClientError, Code, NetworkField, NetworkPatch, ProjectField, ProjectPatch,
};
use skein_fabric::Txn;
use skein_model::{Exit, NodeName, NodeRecord};
use skein_registry::RecordKey;
use skein_tests::{Setup, World, run, until};

fn by(node: &str) -> Result<Exit> {
    Ok(Exit { node: node.parse()?, address: None })
}

/// What keeps a node in the records, as its removal says it.
async fn keeper(client: &Client, node: &str) -> Result<String> {
    match client.remove_node(node).await {
        Err(ClientError::Api(error)) if error.code == Code::NodeInUse => Ok(error.message),
        other => bail!("{node} was expected to stay: {other:?}"),
    }
}

#[test]
fn a_node_by_which_something_leaves_stays_and_says_what() {
    run(Setup::nodes(2), async |world| {
        let admin = world.client().clone();
        let blue = project(world, "blue").await?;
        let own =
            skein_model::NetworkSpec { exit: Some(by("n2")?), ..network("web", "10.20.0.0/24")? };
        blue.create_network(&own).await?;
        let patch = ProjectPatch { exit: Some(by("n2")?), ..ProjectPatch::default() };
        admin.change_project("blue", &patch).await?;
        world.cloud_mut().crash_agent("n2").await;
        until("n2's agent to be given up", async || {
            Ok((!keeper(&admin, "n2").await?.contains("its agent lives")).then_some(()))
        })
        .await?;
        let why = keeper(&admin, "n2").await?;
        ensure!(why.contains("network web of project blue leaves by it"), "{why}");
        let clear = NetworkPatch { clear: vec![NetworkField::Exit], ..NetworkPatch::default() };
        blue.change_network("web", &clear).await?;
        let why = keeper(&admin, "n2").await?;
        ensure!(why.contains("project blue leaves by it"), "{why}");
        let clear = ProjectPatch { clear: vec![ProjectField::Exit], ..ProjectPatch::default() };
        admin.change_project("blue", &clear).await?;
        admin.remove_node("n2").await?;
        // Nothing leaves by a node that is none any more.
        refused(admin.change_project("blue", &patch).await, Code::NodeUnknown)?;
        let patch = NetworkPatch { exit: Some(by("n2")?), ..NetworkPatch::default() };
        refused(blue.change_network("web", &patch).await, Code::NodeUnknown)?;
        let lost =
            skein_model::NetworkSpec { exit: Some(by("n2")?), ..network("b", "10.21.0.0/24")? };
        refused(blue.create_network(&lost).await, Code::NodeUnknown)?;
        Ok(())
    });
}

/// A node whose agent is gone for good.
async fn dead_node(world: &World, name: &str) -> Result<()> {
    let state = &world.cloud().parts().state;
    let there = state.get(&RecordKey::Node("n1".parse()?).key()).await?.context("n1")?;
    let record: NodeRecord = serde_json::from_slice(&there.value)?;
    let name: NodeName = name.parse()?;
    let record = NodeRecord { name: name.clone(), number: 9, ..record };
    let txn = Txn::new().then(RecordKey::Node(name.clone()).put(&record)?);
    let written = state.txn(txn).await?;
    ensure!(written.succeeded, "{written:?}");
    until("the server to know the node", async || {
        let nodes = world.client().nodes().await?;
        Ok(nodes.iter().any(|node| node.name == name.as_str()).then_some(()))
    })
    .await
}

#[test]
fn a_node_that_goes_while_an_exit_comes_leaves_no_exit_behind() {
    run(Setup::default(), async |world| {
        let admin = world.client().clone();
        project(world, "blue").await?;
        let (mut kept, mut gone) = (0, 0);
        for turn in 0..12 {
            let name = format!("dead-{turn}");
            dead_node(world, &name).await?;
            let patch = ProjectPatch { exit: Some(by(&name)?), ..ProjectPatch::default() };
            let changing = admin.change_project("blue", &patch);
            let (changed, removed) = tokio::join!(changing, admin.remove_node(&name));
            let exit = admin.project("blue").await?.exit.map(|exit| exit.node.to_string());
            let names_it = exit.as_deref() == Some(name.as_str());
            match (changed, removed) {
                (Ok(_), Err(error)) if error.code() == Some(Code::NodeInUse) => {
                    ensure!(names_it, "turn {turn}: {exit:?}");
                    kept += 1;
                }
                (Err(error), Ok(())) if error.code() == Some(Code::NodeUnknown) => {
                    ensure!(!names_it, "turn {turn}: an exit by a node that is gone");
                    gone += 1;
                }
                other => bail!("turn {turn}: {other:?}"),
            }
        }
        ensure!(kept + gone == 12, "{kept} stayed, {gone} went");
        Ok(())
    });
}
