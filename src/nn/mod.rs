//! Layers: parameters and composition. No gradient is written here, ops know their own.

mod basic_block;
pub(crate) mod frozen;
mod mobile_bottleneck;
mod norm;
pub mod params;
mod pointwise;

pub use basic_block::BasicBlock;
pub use mobile_bottleneck::MobileBottleneck;
pub use norm::Norm;
pub(crate) use norm::{EPS, shared};
pub use params::{Builder, Entry, Id, Init, Params, Role};
pub use pointwise::Pointwise;

use std::cell::RefCell;
use std::fmt::Display;

use crate::error::Result;
use crate::storage::Storage;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// Standard deviation that every convolution starts with.
pub(crate) const WEIGHT_STD: f64 = 0.01;

/// Whether BatchNorm looks at the batch or at its running statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics over this many ghost groups of consecutive images.
    Train {
        /// Number of groups.
        groups: usize,
    },
    /// Running statistics.
    Eval,
}

/// Is told the name and value of every stage of a model.
pub type Observer<'a> = dyn Fn(&str, &Tensor) + 'a;

/// What a forward pass needs: a tape, the parameters on it, the mode.
pub struct Context<'a> {
    /// Where ops are recorded.
    pub tape: Tape,
    /// How BatchNorm behaves.
    pub mode: Mode,
    params: Vec<Tensor>,
    updates: RefCell<Vec<norm::RunningUpdate>>,
    observer: Option<&'a Observer<'a>>,
}

/// What a finished training pass leaves to the next: the room of its lists, which are empty.
pub struct Spare {
    tape: Tape,
    params: Vec<Tensor>,
    updates: Vec<norm::RunningUpdate>,
}

impl Spare {
    fn of(tape: Tape) -> Self {
        Spare { tape, params: vec![], updates: vec![] }
    }
}

impl Default for Spare {
    fn default() -> Self {
        Self::of(Tape::recording())
    }
}

impl<'a> Context<'a> {
    /// A training pass: trained parameters become leaves of a recording tape.
    pub fn train(params: &Params, groups: usize) -> Self {
        Self::train_in(Spare::default(), params, groups)
    }

    /// [`Self::train`] in the room that a pass before it took: the same ops allocate nothing again.
    pub fn train_in(spare: Spare, params: &Params, groups: usize) -> Self {
        Self::new(params, spare, Mode::Train { groups })
    }

    /// A training pass whose graph can be replayed in double precision.
    pub fn replayable(params: &Params, groups: usize) -> Self {
        Self::new(params, Spare::of(Tape::keeping_all()), Mode::Train { groups })
    }

    /// An evaluation pass: nothing is recorded.
    pub fn eval(params: &Params) -> Self {
        Self::new(params, Spare::of(Tape::off()), Mode::Eval)
    }

    fn new(params: &Params, spare: Spare, mode: Mode) -> Self {
        let Spare { tape, params: mut on_tape, updates } = spare;
        on_tape.extend(params.entries().map(|(id, e)| match e.role {
            Role::Statistic => params.tensor(id),
            _ => tape.leaf(&params.tensor(id)),
        }));
        Context { tape, mode, params: on_tape, updates: updates.into(), observer: None }
    }

    /// Calls `observer` with the name and value of every stage of a model.
    pub fn observed(self, observer: &'a Observer<'a>) -> Self {
        Context { observer: Some(observer), ..self }
    }

    /// Reports a stage to the observer, if there is one, and hands it back.
    pub fn stage(&self, name: impl Display, t: Tensor) -> Tensor {
        if let Some(observe) = self.observer {
            observe(&name.to_string(), &t);
        }
        t
    }

    /// The recording, without its end.
    pub fn into_tape(self) -> Tape {
        self.tape
    }

    /// A parameter, on the tape.
    pub fn param(&self, id: Id) -> &Tensor {
        &self.params[id.0]
    }

    /// Ends a training pass: writes the gradient of `loss` for the trained part of the arena into `grads` and moves
    /// the running statistics of `params` towards the batch. The next pass can take the room of this one.
    ///
    /// # Errors
    /// When `loss` was not recorded by this context, or a device fails.
    pub fn finish(self, loss: &Tensor, params: &mut Params, grads: &mut Storage) -> Result<Spare> {
        let Context { tape, params: mut leaves, updates, .. } = self;
        let trained = params.entries().filter(|(_, e)| e.role != Role::Statistic);
        let places = trained.map(|(id, entry)| (&leaves[id.0], entry.range.clone()));
        let tape = tape.backward_into(loss, places, grads)?;
        // The leaves share the arena: while they live, changing it would copy it.
        leaves.clear();
        let mut updates = updates.into_inner();
        updates.drain(..).try_for_each(|u| u.apply(params))?;
        Ok(Spare { tape, params: leaves, updates })
    }
}
