//! What a node that is no more left in the host's namespace: one table, which bears its name.

use super::outside::TABLE_PREFIX;
use crate::error::NetError;
use crate::names::NetworkName;
use crate::netfilter::{Family, Netfilter, Ruleset, Table, replace};
use crate::network::blocking;
use tracing::info;

/// Removes the tables of nodes of `cloud` ([`NetworkName::is_within`]) from this process's namespace, but for those that
/// stay. Returns whose they were. Nothing else on the host is touched; repeating it is harmless.
///
/// # Errors
/// [`NetError::Rules`].
pub async fn sweep_tables(
    cloud: &NetworkName,
    stays: impl Fn(&NetworkName) -> bool + Send + 'static,
) -> Result<Vec<NetworkName>, NetError> {
    let cloud = cloud.clone();
    blocking(move || {
        let failed = |source| NetError::Rules { source };
        let mut netfilter = Netfilter::open().map_err(failed)?;
        let tables = netfilter.tables(Family::Ipv4).map_err(failed)?;
        let ours = |name: &NetworkName| name.is_within(&cloud) && !stays(name);
        let nodes: Vec<_> = tables.iter().filter_map(|table| node_of(table)).filter(ours).collect();
        for node in &nodes {
            let place = (Family::Ipv4, format!("{TABLE_PREFIX}{node}"));
            let stale = Ruleset::from([(place, Table::default())]);
            netfilter.commit(&replace(&Ruleset::new(), &stale)).map_err(failed)?;
            info!(network.name = %node, "the table of a node that is no more was removed");
        }
        Ok(nodes)
    })
    .await
}

/// The node whose table is called so; `None` for what is not ours.
fn node_of(table: &str) -> Option<NetworkName> {
    table.strip_prefix(TABLE_PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_its_node() {
        let check = |table: &str, node: Option<&str>| {
            assert_eq!(node_of(table).map(|node| node.to_string()).as_deref(), node, "{table}");
        };
        check("skein-c0123abcd-n2", Some("c0123abcd-n2"));
        check("skein-", None);
        check("filter", None);
        check("docker-skein-c0", None);
    }
}
