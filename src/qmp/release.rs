//! Takes everything of ours out of a QEMU again. It looks at nothing but QEMU itself, so that whoever comes later, the watchdog, the
//! next run or a person, can do it for one that was killed.
//!
//! Order: exports (they use nodes) · the NBD server · jobs · the nodes that look into a snapshot (while they are there, a filter lets
//! nobody else write to its disk) · devices back onto their own nodes · our other nodes, from the top · descriptors.

use super::{OURS, Qmp};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// For jobs and exports to go after they were told to.
const GONE_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What was found of ours and taken out, as QEMU calls it.
#[derive(Debug, Default, Serialize)]
pub struct Released {
    /// Exports, jobs, nodes; empty if there was nothing.
    pub removed: Vec<String>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    #[serde(default)]
    status: String,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<Edge>,
}

#[derive(Deserialize)]
struct GraphNode {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct Edge {
    parent: u64,
    child: u64,
    name: String,
}

impl Graph {
    /// The node that is the child `name` of the node `parent`.
    fn child(&self, parent: &str, name: &str) -> Option<&str> {
        let id = self.nodes.iter().find(|node| node.name == parent)?.id;
        let edge = self.edges.iter().find(|edge| edge.parent == id && edge.name == name)?;
        self.nodes.iter().find(|node| node.id == edge.child).map(|node| node.name.as_str())
    }
}

/// Takes out exports, jobs, nodes and descriptors of ours; the guest goes on all the time. Dirty bitmaps stay. Where nothing is of
/// ours, nothing is done.
///
/// # Errors
/// QEMU refuses or is gone.
pub fn release(qmp: &mut Qmp) -> Result<Released> {
    let mut removed = Vec::new();
    let exports: Vec<Named> = qmp.ask("query-block-exports", json!({}))?;
    for export in exports.iter().filter(|export| export.id.starts_with(OURS)) {
        qmp.call("block-export-del", json!({ "id": export.id, "mode": "hard" }))?;
        removed.push(export.id.clone());
    }
    until_gone(qmp, "query-block-exports")?;
    // QEMU has one server. It is ours where something of ours is left and nobody else exports anything.
    let others = exports.iter().any(|export| export.kind == "nbd" && !export.id.starts_with(OURS));
    if !others && (!removed.is_empty() || !nodes(qmp)?.is_empty()) {
        // It may never have been started.
        let _ = qmp.call("nbd-server-stop", json!({}));
    }
    // Where the server was never started with it, the socket is still kept under this name.
    let _ = qmp.call("closefd", json!({ "fdname": format!("{OURS}nbd") }));
    let jobs: Vec<Named> = qmp.ask("query-jobs", json!({}))?;
    for job in jobs.iter().filter(|job| job.id.starts_with(OURS)) {
        match job.status.as_str() {
            "concluded" => qmp.call("job-dismiss", json!({ "id": job.id }))?,
            _ => qmp.call("job-cancel", json!({ "id": job.id }))?,
        };
        removed.push(job.id.clone());
    }
    until_gone(qmp, "query-jobs")?;
    remove_nodes(qmp, &["-view", "-access"], &mut removed)?;
    let backends: Vec<Value> = qmp.ask("query-block", json!({}))?;
    for backend in &backends {
        let text = |path: &str| backend.pointer(path).and_then(Value::as_str);
        let (Some(node), Some(device)) = (text("/inserted/node-name"), text("/qdev")) else { continue };
        if !node.starts_with(OURS) {
            continue;
        }
        let graph: Graph = qmp.ask("x-debug-query-block-graph", json!({}))?;
        let Some(own) = graph.child(node, "file") else {
            return Err(qmp.wrong(&format!("the disk of {device} below {node}"), "none"));
        };
        put_on(qmp, device, own)?;
    }
    remove_nodes(qmp, &["-filter", ""], &mut removed)?;
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Set {
        fdset_id: u64,
        fds: Vec<Handed>,
    }
    #[derive(Deserialize)]
    struct Handed {
        opaque: Option<String>,
    }
    let sets: Vec<Set> = qmp.ask("query-fdsets", json!({}))?;
    let ours = |set: &&Set| set.fds.iter().any(|fd| fd.opaque.as_deref().is_some_and(|text| text.starts_with(OURS)));
    for set in sets.iter().filter(ours) {
        qmp.call("remove-fd", json!({ "fdset-id": set.fdset_id }))?;
    }
    // A guest that QEMU holds because our files took no more goes on, now that nothing of it goes there.
    if !removed.is_empty() && qmp.call("query-status", json!({}))?.pointer("/status") == Some(&"io-error".into()) {
        qmp.call("cont", json!({}))?;
    }
    Ok(Released { removed })
}

/// Lets a running device read and write another node: above or below its own, so that the guest sees no difference.
///
/// # Errors
/// QEMU refuses.
pub(super) fn put_on(qmp: &mut Qmp, device: &str, node: &str) -> Result<()> {
    let path = if device.starts_with('/') { device.to_owned() } else { format!("/machine/peripheral/{device}") };
    qmp.call("qom-set", json!({ "path": path, "property": "drive", "value": node })).map(drop)
}

/// Our nodes.
fn nodes(qmp: &mut Qmp) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Node {
        node_name: Option<String>,
    }
    let nodes: Vec<Node> = qmp.ask("query-named-block-nodes", json!({ "flat": true }))?;
    Ok(nodes.into_iter().filter_map(|node| node.node_name).filter(|name| name.starts_with(OURS)).collect())
}

/// Removes our nodes that end so, in this order: a node goes before those that it uses.
fn remove_nodes(qmp: &mut Qmp, ends: &[&str], removed: &mut Vec<String>) -> Result<()> {
    for end in ends {
        for node in nodes(qmp)?.into_iter().filter(|node| node.ends_with(end)) {
            qmp.call("blockdev-del", json!({ "node-name": node }))?;
            removed.push(node);
        }
    }
    Ok(())
}

/// Waits until `query` lists nothing of ours. What has concluded meanwhile is dismissed.
pub(super) fn until_gone(qmp: &mut Qmp, query: &str) -> Result<()> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let left: Vec<Named> = qmp.ask(query, json!({}))?;
        let Some(one) = left.into_iter().find(|one| one.id.starts_with(OURS)) else { return Ok(()) };
        if one.status == "concluded" {
            qmp.call("job-dismiss", json!({ "id": one.id }))?;
        }
        if Instant::now() > until {
            let limit = GONE_WITHIN.as_secs();
            return Err(Error::failed(format!(
                "QEMU at {}: expected {} to end within {limit} s, found it still there",
                qmp.socket().display(),
                one.id
            ))
            .next(format!("run 'motiongear release {}' later", qmp.socket().display())));
        }
        std::thread::sleep(LOOK);
    }
}
