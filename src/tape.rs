//! Reverse-mode differentiation: a tape that is a vector.
//!
//! Ops are pushed as they run, so the order of the vector is topological and the backward pass is a reverse loop.
//! A tape is an explicit value: with [`Tape::off`] nothing is stored and intermediates free themselves. One that was played
//! back is handed on blank, so the next recording of the same ops needs no memory that is not there.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::op::{Kept, List, Op, forward, list};
use crate::ops::AnyOp;
use crate::shape::Shape;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Where on which tape a tensor was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    tape: u32,
    index: usize,
}

impl NodeId {
    /// Place on the tape `tape`, if that is where it was recorded.
    pub(crate) fn on(self, tape: u32) -> Option<usize> {
        (self.tape == tape).then_some(self.index)
    }
}

/// What an op left behind. A leaf has no op and is its own output.
#[derive(Default)]
pub(crate) struct Node {
    pub op: Option<AnyOp>,
    /// Shape of each input, its node, and its values where they are kept.
    pub inputs: List<(Shape, Option<usize>, Option<Tensor>)>,
    pub outputs: List<Option<Tensor>>,
    /// What has flowed back into its result so far.
    gradient: Option<Storage>,
    /// Of a leaf: where in the arena its gradient belongs.
    place: Option<Range<usize>>,
    /// Whether a first part of the gradient is in its place; `gradient` is to be added.
    written: bool,
}

/// Which values a tape keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    /// What backward reads.
    Needed,
    /// Everything, so that the graph can be replayed.
    All,
}

/// A recording of the ops that led to a loss.
pub struct Tape {
    id: u32,
    keep: Keep,
    nodes: RefCell<Vec<Node>>,
}

impl Tape {
    /// A tape that records what a backward pass needs.
    pub fn recording() -> Self {
        Self::keeping(Keep::Needed)
    }

    /// A tape that computes and forgets.
    pub fn off() -> Self {
        Self::keeping(Keep::Nothing)
    }

    /// A tape that records everything, for a [`crate::replay::Replay`].
    pub fn keeping_all() -> Self {
        Self::keeping(Keep::All)
    }

    fn keeping(keep: Keep) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Tape { id: NEXT.fetch_add(1, Ordering::Relaxed), keep, nodes: RefCell::default() }
    }

    /// Marks `t` as something a gradient is wanted for.
    pub fn leaf(&self, t: &Tensor) -> Tensor {
        let kept = (self.keep == Keep::All).then(|| t.clone());
        self.push(t.clone(), Node { outputs: list([kept]), ..Node::default() })
    }

    /// Runs `op` and returns its result.
    pub fn apply<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Tensor> {
        Ok(self.apply_all(op, x)?.swap_remove(0))
    }

    /// Runs `op` and returns its result followed by its statistics.
    ///
    /// # Panics
    /// If the inputs are more than [`MAX_ARGS`](crate::op::MAX_ARGS).
    pub fn apply_all<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<List<Tensor>> {
        let mut y = forward(&op, x)?;
        // A replay computes everything again, what follows from constants alone included.
        let all = self.keep == Keep::All;
        if self.keep == Keep::Nothing || !all && x.iter().all(|t| t.node.is_none()) {
            return Ok(y);
        }
        let mut inputs = List::new();
        for (i, t) in x.iter().enumerate() {
            if let Some(node) = t.node {
                if node.tape != self.id {
                    return Err(Error::Shape { op: O::NAME, what: format!("input {i} was recorded on another tape") });
                }
                if !op.differentiable(i) && !is_constant(&self.nodes.borrow(), node.index) {
                    return Err(Error::Shape {
                        op: O::NAME,
                        what: format!("no gradient flows into input {i}: pass a constant"),
                    });
                }
            }
            let kept = (all || op.reads_input(i)).then(|| (*t).clone());
            inputs.push((t.shape(), t.node.map(|n| n.index), kept));
        }
        let outputs = y.iter().enumerate().map(|(i, t)| (all || op.reads_output(i)).then(|| t.clone())).collect();
        y[0] = self.push(y[0].clone(), Node { op: Some(op.into()), inputs, outputs, ..Node::default() });
        Ok(y)
    }

    fn push(&self, mut t: Tensor, node: Node) -> Tensor {
        if self.keep != Keep::Nothing {
            let mut nodes = self.nodes.borrow_mut();
            t.node = Some(NodeId { tape: self.id, index: nodes.len() });
            nodes.push(node);
        }
        t
    }

    /// The recording, and the number that marks its tensors.
    pub(crate) fn into_nodes(self) -> (u32, Vec<Node>) {
        (self.id, self.nodes.into_inner())
    }

    /// The same tape without its recording, whose tensors it no longer knows.
    fn blank(self) -> Self {
        let mut nodes = self.nodes.into_inner();
        nodes.clear();
        Tape { nodes: nodes.into(), ..Self::keeping(self.keep) }
    }

    /// Gradients of `loss` with respect to every leaf. Consumes the recording, freeing activations on the way.
    ///
    /// # Errors
    /// When `loss` is not a single value recorded on this tape, or a device fails.
    pub fn backward(mut self, loss: &Tensor) -> Result<Gradients> {
        self.run_backward(loss, None)?;
        Ok(Gradients { tape: self.id, nodes: self.nodes.into_inner() })
    }

    /// [`Self::backward`] that writes the gradients of `leaves` into `arena`, each at its place. Those of leaves that the
    /// loss does not depend on are zero. Returns the tape, blank.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn backward_into<'l>(
        mut self,
        loss: &Tensor,
        leaves: impl IntoIterator<Item = (&'l Tensor, Range<usize>)>,
        arena: &mut Storage,
    ) -> Result<Self> {
        let nodes = self.nodes.get_mut();
        for (leaf, place) in leaves {
            let index = leaf.node.and_then(|node| node.on(self.id)).ok_or_else(foreign_leaf)?;
            nodes[index].place = Some(place);
        }
        let on_device = arena.gpu().is_some();
        self.run_backward(loss, on_device.then_some(&mut *arena))?;
        for Node { gradient, place, written, .. } in self.nodes.get_mut() {
            let Some(place) = place else { continue };
            match (*written, gradient.take()) {
                (true, None) => {}
                (true, Some(more)) => arena.add_at(place.start, &more)?,
                (false, Some(all)) => arena.write(place.start, &all)?,
                (false, None) => arena.write(place.start, &arena.filled_like(place.len(), 0.0)?)?,
            }
        }
        Ok(self.blank())
    }

    /// The reverse loop. The first gradient of a node that has a place is written into the arena, where there is one.
    fn run_backward(&mut self, loss: &Tensor, mut arena: Option<&mut Storage>) -> Result<()> {
        let start = match loss.node {
            Some(n) if n.tape == self.id && loss.shape().numel() == 1 => n.index,
            _ => {
                return Err(Error::Shape {
                    op: "backward",
                    what: "the loss must be one value recorded on this tape".into(),
                });
            }
        };
        let nodes = self.nodes.get_mut();
        nodes[start].gradient = Some(loss.filled(1.0)?);
        for at in (0..nodes.len()).rev() {
            // What an op read was recorded before it.
            let (before, node) = nodes.split_at_mut(at);
            let Node { op: Some(op), inputs, outputs, gradient, .. } = &mut node[0] else { continue };
            let (inputs, outputs) = (std::mem::take(inputs), std::mem::take(outputs));
            let Some(dy) = gradient.take() else { continue };
            let x: List<Kept> = inputs.iter().map(|(shape, _, t)| (*shape, t.as_ref())).collect();
            let y: List<Option<&Tensor>> = outputs.iter().map(Option::as_ref).collect();
            let wanted: List<bool> = inputs.iter().map(|(_, id, _)| id.is_some()).collect();
            let mut place = |(_, id, _): &(Shape, Option<usize>, Option<Tensor>)| {
                let node = id.map(|id| &mut before[id]).filter(|node| arena.is_some() && !node.written)?;
                node.written = node.place.is_some();
                node.place.clone()
            };
            let into: List<Option<Range<usize>>> = inputs.iter().map(&mut place).collect();
            let into = match &mut arena {
                Some(arena) if into.iter().any(Option::is_some) => arena.windows_mut(&into),
                _ => into.iter().map(|_| None).collect(),
            };
            let dx = op.recorded().backward(&x, &y, &dy, &wanted, into)?;
            drop(dy);
            for ((_, id, _), d) in inputs.iter().zip(dx) {
                let (Some(id), Some(d)) = (id, d) else { continue };
                match &mut before[*id].gradient {
                    Some(sum) => sum.add_assign(&d)?,
                    first => *first = Some(d),
                }
            }
        }
        Ok(())
    }
}

/// A bug of the caller.
fn foreign_leaf() -> Error {
    Error::Shape { op: "backward", what: "a leaf was not recorded on this tape".into() }
}

/// Whether a node follows from constants alone: only a tape that keeps everything records such.
fn is_constant(nodes: &[Node], at: usize) -> bool {
    let node = &nodes[at];
    node.op.is_some() && node.inputs.iter().all(|(_, id, _)| id.is_none_or(|id| is_constant(nodes, id)))
}

/// What [`Tape::backward`] found.
pub struct Gradients {
    tape: u32,
    nodes: Vec<Node>,
}

impl Gradients {
    /// The gradient of a leaf, laid out as the leaf; `None` when the loss does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&Storage> {
        self.nodes.get(leaf.node?.on(self.tape)?)?.gradient.as_ref()
    }
}
