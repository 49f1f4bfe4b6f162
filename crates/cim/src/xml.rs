//! The one door through which XML comes in, and the one hand that writes it.
//!
//! Text from outside is first run through once, without building anything, and held against [`Bounds`]: size, depth, how many nodes,
//! attributes and namespaces. A document type is refused on sight, and so is every entity but the five that XML itself knows. Only then
//! is a tree built.
//!
//! What is written has no indentation, no tags that close themselves, and no characters that XML cannot hold: some clients
//! read it with a search for texts.

mod door;
mod write;

pub use door::{Bounds, XmlError, decode, parse};
pub use write::{Attributes, XmlWriter};

use roxmltree::Node;

/// Child elements, without what stands between them.
pub(crate) fn elements<'a, 'input: 'a>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

/// The only child element, if there is just one.
pub(crate) fn only_element<'a, 'input>(node: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    let mut children = elements(node);
    children.next().filter(|_| children.next().is_none())
}

/// All text directly in an element, as it is; comments do not cut it.
pub(crate) fn text(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|child| child.text()).collect()
}

/// The name without its prefix.
pub(crate) fn local<'a>(node: Node<'a, '_>) -> &'a str {
    node.tag_name().name()
}
