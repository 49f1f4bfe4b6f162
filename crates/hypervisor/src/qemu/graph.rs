//! The block graph: which node stands in front of which.
//!
//! Asked for only where it matters: with a filter or a job on a disk, and when our own filter is taken out again.

use std::collections::HashMap;

use serde_json::Value;

use super::answer::{list, number, text};

/// Drivers that pass reads and writes through to one child: the disk is what lies below them.
const FILTERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "commit_top",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "mirror_top",
    "preallocate",
    "throttle",
];

/// Filters of jobs that end by putting another node in the disk's place.
const PIVOTS: &[&str] = &["commit_top", "mirror_top"];

/// Most nodes a walk passes: far more than any sane chain has, so that a circle in a hostile answer ends.
const WALK_MAX: usize = 64;

/// Whether a driver is a filter.
pub fn is_filter(driver: &str) -> bool {
    FILTERS.contains(&driver)
}

/// Whether a driver is the filter of a job that will exchange the disk's node.
pub fn is_pivot(driver: &str) -> bool {
    PIVOTS.contains(&driver)
}

/// The graph at one moment.
#[derive(Debug, Default)]
pub struct Graph {
    /// Child nodes of a node: (role, name).
    children: HashMap<String, Vec<(String, String)>>,
    /// The node at the root of each backend, by the backend's name: that of a `-drive`, or the device's.
    roots: HashMap<String, String>,
    /// Each node's own description.
    nodes: HashMap<String, Value>,
}

impl Graph {
    /// From the answers to `x-debug-query-block-graph` and `query-named-block-nodes`. A QEMU that refuses the former,
    /// which is not a stable interface, gives an empty graph.
    pub fn new(edges: Option<&Value>, nodes: &Value) -> Self {
        let mut graph = Graph::default();
        for node in list(nodes) {
            graph.nodes.insert(text(node, "/node-name").into(), node.clone());
        }
        let Some(edges) = edges else { return graph };
        let known: HashMap<u64, (&str, &str)> = list(&edges["nodes"])
            .iter()
            .filter_map(|n| Some((number(n, "/id")?, (text(n, "/type"), text(n, "/name")))))
            .collect();
        for edge in list(&edges["edges"]) {
            let end = |which: &str| number(edge, which).and_then(|id| known.get(&id)).copied();
            let (Some((kind, parent)), Some((_, child))) = (end("/parent"), end("/child")) else { continue };
            match kind {
                "block-backend" => drop(graph.roots.insert(parent.into(), child.into())),
                _ => {
                    let role = text(edge, "/name").to_owned();
                    graph.children.entry(parent.into()).or_default().push((role, child.into()));
                }
            }
        }
        graph
    }

    /// A node's description, as `query-named-block-nodes` gives it.
    pub fn node(&self, name: &str) -> Option<&Value> {
        self.nodes.get(name)
    }

    /// The names of all nodes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The node at the root of a backend, hidden filters of jobs included.
    pub fn root(&self, backend: &str) -> Option<&str> {
        self.roots.get(backend).map(String::as_str)
    }

    /// What lies below a filter.
    pub fn below(&self, filter: &str) -> Option<&str> {
        let children = self.children.get(filter)?;
        let role = |wanted: &str| children.iter().find(|(role, _)| role == wanted).map(|(_, name)| name.as_str());
        role("file").or_else(|| role("backing"))
    }

    /// The chain from `root` down through filters to the first node that is none, which comes last.
    pub fn chain<'a>(&'a self, root: &'a str) -> Vec<&'a str> {
        let mut chain = vec![root];
        while chain.len() < WALK_MAX {
            let at = chain[chain.len() - 1];
            let driver = self.node(at).map_or("", |node| text(node, "/drv"));
            match self.below(at).filter(|_| is_filter(driver)) {
                Some(next) => chain.push(next),
                None => break,
            }
        }
        chain
    }
}
