//! The client's part for projects, networks, ports, firewall groups and publications.

use crate::client::{Client, ClientError, Query};
use crate::network::{
    Group, GroupCounters, GroupPut, Network, NetworkPatch, Port, PortPatch, Project, ProjectNew,
    ProjectPatch, ProjectToken, Publication, TokenNew, Trace, TraceRequest,
};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use skein_model::{NetworkSpec, PublicationSpec, RuleSpec, Transport};
use std::time::Duration;

impl Client {
    /// The same client for another project than `default`, or than that of its token.
    #[must_use]
    pub fn in_project(mut self, project: Option<String>) -> Self {
        self.project = project;
        self
    }

    /// All projects.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn projects(&self) -> Result<Vec<Project>, ClientError> {
        self.get("/v1/projects").await
    }

    /// One project.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn project(&self, name: &str) -> Result<Project, ClientError> {
        self.get(&format!("/v1/projects/{name}")).await
    }

    /// Creates a project with its first network. The same again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_project(&self, project: &ProjectNew) -> Result<Project, ClientError> {
        self.write(Method::POST, "/v1/projects", project).await
    }

    /// Changes what a project is.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn change_project(
        &self,
        name: &str,
        patch: &ProjectPatch,
    ) -> Result<Project, ClientError> {
        self.write(Method::PATCH, &format!("/v1/projects/{name}"), patch).await
    }

    /// Removes a project that owns nothing any more.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_project(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/projects/{name}")).await
    }

    /// The tokens of a project, without their secrets.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn project_tokens(&self, project: &str) -> Result<Vec<ProjectToken>, ClientError> {
        self.get(&format!("/v1/projects/{project}/tokens")).await
    }

    /// Makes a token that opens one project; the answer alone has its secret.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_token(
        &self,
        project: &str,
        token: &TokenNew,
    ) -> Result<ProjectToken, ClientError> {
        self.write(Method::POST, &format!("/v1/projects/{project}/tokens"), token).await
    }

    /// Withdraws a token.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_token(&self, project: &str, id: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/projects/{project}/tokens/{id}")).await
    }

    /// The networks of the project.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn networks(&self) -> Result<Vec<Network>, ClientError> {
        self.get("/v1/networks").await
    }

    /// One network.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn network(&self, name: &str) -> Result<Network, ClientError> {
        self.get(&format!("/v1/networks/{name}")).await
    }

    /// Creates a network. The same again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_network(&self, spec: &NetworkSpec) -> Result<Network, ClientError> {
        self.write(Method::POST, "/v1/networks", spec).await
    }

    /// Changes what a network is.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn change_network(
        &self,
        name: &str,
        patch: &NetworkPatch,
    ) -> Result<Network, ClientError> {
        self.write(Method::PATCH, &format!("/v1/networks/{name}"), patch).await
    }

    /// Removes a network that nothing uses.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_network(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/networks/{name}")).await
    }

    /// What would happen to a packet, and which rule decides.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn trace(&self, packet: &TraceRequest) -> Result<Trace, ClientError> {
        self.write(Method::POST, "/v1/trace", packet).await
    }

    /// The ports of the project's machines.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn ports(&self) -> Result<Vec<Port>, ClientError> {
        self.get("/v1/ports").await
    }

    /// The port of a machine.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn port(&self, machine: &str) -> Result<Port, ClientError> {
        self.get(&format!("/v1/ports/{machine}")).await
    }

    /// Changes the groups or bounds of a machine's port.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn change_port(&self, machine: &str, patch: &PortPatch) -> Result<Port, ClientError> {
        self.write(Method::PATCH, &format!("/v1/ports/{machine}"), patch).await
    }

    /// Records what a machine's port sends and receives, for `time`, in the format of libpcap; of each packet at most
    /// `snap` bytes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn capture(
        &self,
        machine: &str,
        time: Duration,
        snap: u32,
    ) -> Result<Capture, ClientError> {
        let mut query = Query::default();
        query.add("time_ms", Some(&time.as_millis().to_string()));
        query.add("snap", Some(&snap.to_string()));
        let path = format!("/v1/ports/{machine}/capture{}", query.text());
        let reply = self.send(Method::GET, &path, &[], Bytes::new()).await?;
        let body = self.checked(reply).await?.into_body();
        Ok(Capture { client: self.clone(), body })
    }

    /// The firewall groups of the project.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn groups(&self) -> Result<Vec<Group>, ClientError> {
        self.get("/v1/groups").await
    }

    /// One firewall group.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn group(&self, name: &str) -> Result<Group, ClientError> {
        self.get(&format!("/v1/groups/{name}")).await
    }

    /// Creates a firewall group. The same again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_group(&self, group: &GroupPut) -> Result<Group, ClientError> {
        self.write(Method::POST, "/v1/groups", group).await
    }

    /// Replaces what a firewall group says, at once on all nodes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn put_group(&self, group: &GroupPut) -> Result<Group, ClientError> {
        self.write(Method::PUT, &format!("/v1/groups/{}", group.name), group).await
    }

    /// Removes a firewall group that nothing uses.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_group(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/groups/{name}")).await
    }

    /// Adds a rule to a group. The same rule again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn add_rule(&self, group: &str, rule: &RuleSpec) -> Result<Group, ClientError> {
        self.write(Method::POST, &format!("/v1/groups/{group}/rules"), rule).await
    }

    /// Takes a rule out of a group; connections that only it allowed are cut.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_rule(&self, group: &str, rule: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/groups/{group}/rules/{rule}")).await
    }

    /// What the rules of a group let through.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn group_counters(&self, group: &str) -> Result<GroupCounters, ClientError> {
        self.get(&format!("/v1/groups/{group}/counters")).await
    }

    /// The published ports of the project.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn publications(&self) -> Result<Vec<Publication>, ClientError> {
        self.get("/v1/publications").await
    }

    /// Publishes a port. The same again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn publish(&self, spec: &PublicationSpec) -> Result<Publication, ClientError> {
        self.write(Method::POST, "/v1/publications", spec).await
    }

    /// Withdraws a published port.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn unpublish(&self, protocol: Transport, port: u16) -> Result<(), ClientError> {
        self.delete(&format!("/v1/publications/{}/{port}", protocol.as_str())).await
    }
}

/// What a port sends and receives, as it happens, in the format of libpcap.
#[derive(Debug)]
pub struct Capture {
    client: Client,
    body: Incoming,
}

impl Capture {
    /// The next bytes of the file; none when the capture ended.
    ///
    /// # Errors
    /// [`ClientError::Transport`].
    ///
    /// # Cancel safety
    /// Safe: a piece that was not returned is returned next.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| self.client.transport(error))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
