//! Reverse-mode differentiation: a tape that is a vector.
//!
//! Ops are pushed as they run, so the order of the vector is topological and the backward pass is a reverse loop.
//! A tape is an explicit value: with [`Tape::off`] nothing is stored and intermediates free themselves.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::op::{Kept, Op, RecordedOp, forward};
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
pub(crate) struct Node {
    pub op: Option<Box<dyn RecordedOp>>,
    /// Shape of each input, its node, and its values where they are kept.
    pub inputs: Vec<(Shape, Option<usize>, Option<Tensor>)>,
    pub outputs: Vec<Option<Tensor>>,
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
        self.push(t.clone(), Node { op: None, inputs: vec![], outputs: vec![kept] })
    }

    /// Runs `op` and returns its result.
    pub fn apply<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Tensor> {
        Ok(self.apply_all(op, x)?.swap_remove(0))
    }

    /// Runs `op` and returns its result followed by its statistics.
    pub fn apply_all<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut y = forward(&op, x)?;
        // A replay computes everything again, what follows from constants alone included.
        let all = self.keep == Keep::All;
        if self.keep == Keep::Nothing || !all && x.iter().all(|t| t.node.is_none()) {
            return Ok(y);
        }
        let mut inputs = Vec::with_capacity(x.len());
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
        y[0] = self.push(y[0].clone(), Node { op: Some(Box::new(op)), inputs, outputs });
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

    /// Gradients of `loss` with respect to every leaf. Consumes the recording, freeing activations on the way.
    ///
    /// # Errors
    /// When `loss` is not a single value recorded on this tape, or a device fails.
    pub fn backward(self, loss: &Tensor) -> Result<Gradients> {
        self.run_backward(loss, vec![], None)
    }

    /// [`Self::backward`] that writes the gradients of `leaves` into `arena`, each at its place. Those of leaves that the
    /// loss does not depend on are zero.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn backward_into(self, loss: &Tensor, leaves: &[(&Tensor, Range<usize>)], arena: &mut Storage) -> Result<()> {
        let mut places = vec![None; self.nodes.borrow().len()];
        for (leaf, place) in leaves {
            let index = leaf.node.and_then(|node| node.on(self.id));
            places[index.ok_or_else(foreign_leaf)?] = Some(place.clone());
        }
        let on_device = arena.gpu().is_some();
        let mut found = self.run_backward(loss, places, on_device.then_some(&mut *arena))?;
        for (leaf, place) in leaves {
            let index = leaf.node.and_then(|node| node.on(found.tape)).ok_or_else(foreign_leaf)?;
            match (found.written[index], found.grads.get_mut(index).and_then(Option::take)) {
                (true, None) => {}
                (true, Some(more)) => arena.add_at(place.start, &more)?,
                (false, Some(all)) => arena.write(place.start, &all)?,
                (false, None) => arena.write(place.start, &arena.filled_like(place.len(), 0.0)?)?,
            }
        }
        Ok(())
    }

    /// The reverse loop. The first gradient of a node that has a place is written into the arena, where there is one.
    fn run_backward(
        self,
        loss: &Tensor,
        places: Vec<Option<Range<usize>>>,
        mut arena: Option<&mut Storage>,
    ) -> Result<Gradients> {
        let start = match loss.node {
            Some(n) if n.tape == self.id && loss.shape().numel() == 1 => n.index,
            _ => {
                return Err(Error::Shape {
                    op: "backward",
                    what: "the loss must be one value recorded on this tape".into(),
                });
            }
        };
        let mut nodes = self.nodes.into_inner();
        let mut grads: Vec<Option<Storage>> = nodes.iter().map(|_| None).collect();
        let mut written = vec![false; nodes.len()];
        grads[start] = Some(loss.filled(1.0)?);
        nodes.truncate(start + 1);
        while let Some(node) = nodes.pop() {
            let (Some(op), Some(dy)) = (&node.op, &grads[nodes.len()]) else { continue };
            let x: Vec<Kept> = node.inputs.iter().map(|(shape, _, t)| (*shape, t.as_ref())).collect();
            let y: Vec<Option<&Tensor>> = node.outputs.iter().map(Option::as_ref).collect();
            let wanted: Vec<bool> = node.inputs.iter().map(|(_, id, _)| id.is_some()).collect();
            let mut place = |(_, id, _): &(Shape, Option<usize>, Option<Tensor>)| {
                let id = id.filter(|id| arena.is_some() && !written[*id])?;
                let place = places.get(id)?.clone()?;
                written[id] = true;
                Some(place)
            };
            let into: Vec<Option<Range<usize>>> = node.inputs.iter().map(&mut place).collect();
            let into = match &mut arena {
                Some(arena) if into.iter().any(Option::is_some) => arena.windows_mut(&into),
                _ => into.iter().map(|_| None).collect(),
            };
            let dx = op.backward(&x, &y, dy, &wanted, into)?;
            grads[nodes.len()] = None;
            for ((_, id, _), d) in node.inputs.iter().zip(dx) {
                let (Some(id), Some(d)) = (id, d) else { continue };
                match &mut grads[*id] {
                    Some(sum) => sum.add_assign(&d)?,
                    first => *first = Some(d),
                }
            }
        }
        Ok(Gradients { tape: self.id, grads, written })
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
    grads: Vec<Option<Storage>>,
    /// Which went to the arena instead.
    written: Vec<bool>,
}

impl Gradients {
    /// The gradient of a leaf, laid out as the leaf; `None` when the loss does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&Storage> {
        self.grads.get(leaf.node?.on(self.tape)?)?.as_ref()
    }
}
