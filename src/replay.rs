//! A recorded graph evaluated again in double precision, by the definitions of its ops.
//!
//! What [`crate::op::Op::reference_forward`] is to an op, a replay is to a whole model: the truth its fast path is
//! compared with, and a function whose gradient can be checked by central differences.

use crate::error::{Error, Result};
use crate::op::Arg;
use crate::tape::{Node, Tape};
use crate::tensor::Tensor;

/// The graph of a tape that kept everything.
pub struct Replay {
    tape: u32,
    nodes: Vec<Node>,
    /// Outputs of each node; a leaf's only output is its value.
    values: Vec<Vec<Vec<f64>>>,
}

/// Values in double precision, exactly.
fn widen(t: &Tensor) -> Vec<f64> {
    t.data().iter().map(|&v| v.into()).collect()
}

impl Replay {
    /// Takes over the graph of a tape made by [`Tape::keeping_all`]. Its values are still those of the fast path:
    /// [`Self::forward`] replaces them.
    ///
    /// # Errors
    /// When the tape did not keep everything.
    pub fn new(tape: Tape) -> Result<Self> {
        let (tape, nodes) = tape.into_nodes();
        let complete = |n: &Node| n.outputs.iter().all(Option::is_some) && n.inputs.iter().all(|i| i.2.is_some());
        if !nodes.iter().all(complete) {
            return Err(Error::Shape { op: "replay", what: "the tape must keep all values: Tape::keeping_all".into() });
        }
        let values = nodes.iter().map(|n| n.outputs.iter().flatten().map(widen).collect()).collect();
        Ok(Replay { tape, nodes, values })
    }

    fn index(&self, t: &Tensor) -> usize {
        t.node.and_then(|n| n.on(self.tape)).expect("the tensor was recorded on the replayed tape")
    }

    /// The value of a recorded tensor.
    ///
    /// # Panics
    /// If `t` was not recorded on this tape.
    pub fn value(&self, t: &Tensor) -> &[f64] {
        &self.values[self.index(t)][0]
    }

    /// The value of a leaf, to be changed before the next [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::value`].
    pub fn value_mut(&mut self, leaf: &Tensor) -> &mut [f64] {
        let i = self.index(leaf);
        &mut self.values[i][0]
    }

    /// Computes every op again from the leaves and constants.
    pub fn forward(&mut self) {
        for (i, node) in self.nodes.iter().enumerate() {
            let Some(op) = &node.op else { continue };
            let (before, from) = self.values.split_at_mut(i);
            let constants: Vec<Vec<f64>> = node.inputs.iter().map(constant).collect();
            let x = arguments(node, &constants, before);
            let mut y: Vec<&mut [f64]> = from[0].iter_mut().map(|y| &mut y[..]).collect();
            y.iter_mut().for_each(|y| y.fill(f64::NAN));
            op.recorded().define_forward(&x, &mut y);
        }
    }

    /// Gradient of `loss` with respect to each of `leaves`, from the values of the last [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::value`].
    pub fn backward(&self, loss: &Tensor, leaves: &[Tensor]) -> Vec<Vec<f64>> {
        let mut grads: Vec<Vec<f64>> = self.values.iter().map(|v| vec![0.0; v[0].len()]).collect();
        grads[self.index(loss)].fill(1.0);
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let Some(op) = &node.op else { continue };
            let constants: Vec<Vec<f64>> = node.inputs.iter().map(constant).collect();
            let x = arguments(node, &constants, &self.values);
            let y: Vec<&[f64]> = self.values[i].iter().map(|y| &y[..]).collect();
            let mut dx: Vec<Option<Vec<f64>>> =
                node.inputs.iter().map(|(s, id, _)| id.map(|_| vec![f64::NAN; s.numel()])).collect();
            let dy = std::mem::take(&mut grads[i]);
            op.recorded().define_backward(
                &x,
                &y,
                &dy,
                &mut dx.iter_mut().map(Option::as_deref_mut).collect::<Vec<_>>(),
            );
            for ((_, id, _), dx) in node.inputs.iter().zip(dx) {
                if let (Some(id), Some(dx)) = (id, dx) {
                    grads[*id].iter_mut().zip(dx).for_each(|(g, d)| *g += d);
                }
            }
        }
        leaves.iter().map(|t| std::mem::take(&mut grads[self.index(t)])).collect()
    }
}

type Input = (crate::shape::Shape, Option<usize>, Option<Tensor>);

/// The value of an input that no node computes; empty for one that does.
fn constant((_, id, kept): &Input) -> Vec<f64> {
    match (id, kept) {
        (None, Some(t)) => widen(t),
        _ => vec![],
    }
}

/// Inputs of an op: computed ones from `values`, the others from `constants`.
fn arguments<'a>(node: &Node, constants: &'a [Vec<f64>], values: &'a [Vec<Vec<f64>>]) -> Vec<Arg<'a, f64>> {
    let input = |((shape, id, _), constant): (&Input, &'a Vec<f64>)| Arg {
        shape: *shape,
        data: id.map_or(&constant[..], |id| &values[id][0]),
    };
    node.inputs.iter().zip(constants).map(input).collect()
}
