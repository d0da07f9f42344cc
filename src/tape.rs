//! Reverse-mode differentiation: a tape that is a vector.
//!
//! Ops are pushed as they run, so the order of the vector is topological and the backward pass is a reverse loop.
//! A tape is an explicit value: with [`Tape::off`] nothing is stored and intermediates free themselves.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::op::{Arg, Op, RecordedOp, forward};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Where on which tape a tensor was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    tape: u32,
    index: usize,
}

/// What an op left behind. A leaf has no op.
struct Node {
    op: Option<Box<dyn RecordedOp>>,
    /// Shape of each input, its node, and its values where backward reads them.
    inputs: Vec<(Shape, Option<usize>, Option<Tensor>)>,
    outputs: Vec<Option<Tensor>>,
}

/// A recording of the ops that led to a loss.
pub struct Tape {
    id: u32,
    recording: bool,
    nodes: RefCell<Vec<Node>>,
}

impl Tape {
    /// A tape that records.
    pub fn recording() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Tape { id: NEXT.fetch_add(1, Ordering::Relaxed), recording: true, nodes: RefCell::default() }
    }

    /// A tape that computes and forgets.
    pub fn off() -> Self {
        Tape { recording: false, ..Self::recording() }
    }

    /// Marks `t` as something a gradient is wanted for.
    pub fn leaf(&self, t: &Tensor) -> Tensor {
        self.push(t.clone(), Node { op: None, inputs: vec![], outputs: vec![] })
    }

    /// Runs `op` and returns its result.
    pub fn apply<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Tensor> {
        Ok(self.apply_all(op, x)?.swap_remove(0))
    }

    /// Runs `op` and returns its result followed by its statistics.
    pub fn apply_all<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut y = forward(&op, x)?;
        if !self.recording || x.iter().all(|t| t.node.is_none()) {
            return Ok(y);
        }
        let mut inputs = Vec::with_capacity(x.len());
        for (i, t) in x.iter().enumerate() {
            if let Some(node) = t.node {
                if node.tape != self.id {
                    return Err(Error::Shape { op: O::NAME, what: format!("input {i} was recorded on another tape") });
                }
                if !op.differentiable(i) {
                    return Err(Error::Shape {
                        op: O::NAME,
                        what: format!("no gradient flows into input {i}: pass a constant"),
                    });
                }
            }
            let kept = op.reads_input(i).then(|| (*t).clone());
            inputs.push((t.shape(), t.node.map(|n| n.index), kept));
        }
        let outputs = y.iter().enumerate().map(|(i, t)| op.reads_output(i).then(|| t.clone())).collect();
        y[0] = self.push(y[0].clone(), Node { op: Some(Box::new(op)), inputs, outputs });
        Ok(y)
    }

    fn push(&self, mut t: Tensor, node: Node) -> Tensor {
        if self.recording {
            let mut nodes = self.nodes.borrow_mut();
            t.node = Some(NodeId { tape: self.id, index: nodes.len() });
            nodes.push(node);
        }
        t
    }

    /// Gradients of `loss` with respect to every leaf. Consumes the recording, freeing activations on the way.
    ///
    /// # Errors
    /// When `loss` is not a single value recorded on this tape.
    pub fn backward(self, loss: &Tensor) -> Result<Gradients> {
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
        let mut grads: Vec<Option<Buffer>> = nodes.iter().map(|_| None).collect();
        grads[start] = Some(Buffer::filled(1, 1.0));
        nodes.truncate(start + 1);
        while let Some(node) = nodes.pop() {
            let (Some(op), Some(dy)) = (&node.op, &grads[nodes.len()]) else { continue };
            let mut dx: Vec<Option<Buffer>> =
                node.inputs.iter().map(|(shape, id, _)| id.map(|_| Buffer::scratch(shape.numel()))).collect();
            let x: Vec<Arg<f32>> =
                node.inputs.iter().map(|(shape, _, t)| Arg { shape: *shape, data: data(t) }).collect();
            let y: Vec<&[f32]> = node.outputs.iter().map(data).collect();
            op.backward(&x, &y, dy, &mut dx.iter_mut().map(|d| d.as_deref_mut()).collect::<Vec<_>>());
            grads[nodes.len()] = None;
            for ((_, id, _), d) in node.inputs.iter().zip(dx) {
                let (Some(id), Some(d)) = (id, d) else { continue };
                match &mut grads[*id] {
                    Some(sum) => crate::device::cpu::add_assign(sum, &d),
                    first => *first = Some(d),
                }
            }
        }
        Ok(Gradients { tape: self.id, grads })
    }
}

fn data(t: &Option<Tensor>) -> &[f32] {
    t.as_ref().map_or(&[], |t| t.data())
}

/// What [`Tape::backward`] found.
pub struct Gradients {
    tape: u32,
    grads: Vec<Option<Buffer>>,
}

impl Gradients {
    /// The gradient of a leaf, laid out as the leaf; `None` when the loss does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&[f32]> {
        let node = leaf.node.filter(|n| n.tape == self.tape)?;
        self.grads.get(node.index)?.as_deref()
    }
}
