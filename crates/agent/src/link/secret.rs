//! The secret of the cloud's nodes, by which their light protocols know each other.
//!
//! Whoever can read the state is a node or a server of this cloud: what is kept there is known to all of them and to nobody
//! else. The first node that needs the secret makes it; of two at once, one. It is no record: no mirror holds it, no answer of
//! the API is made of it, and it is never logged. Each pair of nodes uses a key of its own that is derived from it
//! (`skein_link::node`).

use bytes::Bytes;
use skein_fabric::{Compare, Key, Op, State, StateError, Txn};
use skein_shell::random_u128;
use std::sync::Arc;

/// Where it is kept: beside the records, not among them.
const KEY: &str = "s/link";

/// The secret, 256 bits, made if there is none.
///
/// # Errors
/// The state cannot be read or written.
pub(super) async fn secret(state: &Arc<dyn State>) -> Result<Bytes, StateError> {
    let key = Key::new(KEY)?;
    loop {
        if let Some(found) = state.get(&key).await? {
            return Ok(found.value);
        }
        let fresh = [random_u128().to_be_bytes(), random_u128().to_be_bytes()].concat();
        let put = Op::put(key.clone(), fresh);
        // Whoever is first has made it; all read it again.
        state.txn(Txn::new().when(Compare::missing(key.clone())).then(put)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_fabric::{EmbeddedOptions, EmbeddedState};

    #[tokio::test]
    async fn all_nodes_get_the_same_and_no_mirror_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = EmbeddedState::open(folder.path(), EmbeddedOptions::default()).unwrap();
        let state: Arc<dyn State> = Arc::new(state);
        let (one, other) = tokio::join!(secret(&state), secret(&state));
        let one = one.unwrap();
        assert_eq!(one, other.unwrap());
        assert_eq!(one.len(), 32);
        assert_eq!(secret(&state).await.unwrap(), one);
        assert!(!KEY.starts_with(skein_registry::RECORDS));
    }
}
