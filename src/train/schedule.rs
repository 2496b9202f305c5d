//! Learning rates and step counts, as transformers' Trainer computes them.

use crate::config::{OptimizerConfig, Schedule, TrainConfig};

/// The steps of a run: T, and how many of them warm up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    pub per_epoch: usize,
    pub total: usize,
    pub warmup: usize,
}

impl Steps {
    /// T = epochs · ⌈rows / batch⌉ (the partial last batch is trained), unless `train.max_steps` replaces it;
    /// warm-up = ⌈ratio · T⌉, unless given in steps.
    pub fn new(rows: usize, train: &TrainConfig, optimizer: &OptimizerConfig) -> Self {
        let per_epoch = rows.div_ceil(train.batch).max(1);
        let total = if train.max_steps > 0 { train.max_steps } else { train.epochs.saturating_mul(per_epoch) };
        let warmup = match optimizer.warmup_steps {
            0 => (optimizer.warmup_ratio * total as f64).ceil() as usize,
            steps => steps,
        };
        Steps { per_epoch, total, warmup }
    }

    /// The rate of the update that follows `step` earlier ones.
    pub fn lr(&self, step: usize, optimizer: &OptimizerConfig) -> f64 {
        if step < self.warmup {
            return optimizer.lr * step as f64 / self.warmup as f64;
        }
        let after = (self.total - self.warmup.min(self.total)).max(1) as f64;
        let progress = (step - self.warmup) as f64 / after;
        let factor = match optimizer.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => 1.0,
        };
        optimizer.lr * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn steps(rows: usize, settings: &[&str]) -> (Steps, OptimizerConfig) {
        let text = "model.path = \"m\"\ndata.train = [\"d\"]\noutput.dir = \"o\"\n";
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::parse("test", text, &settings).unwrap();
        (Steps::new(rows, &config.train, &config.optimizer), config.optimizer)
    }

    #[test]
    fn limo_v1_takes_390_steps_down_to_almost_zero() {
        let (steps, optimizer) = steps(817, &["train.epochs=15", "train.batch=32"]);
        assert_eq!(steps, Steps { per_epoch: 26, total: 390, warmup: 0 });
        assert_eq!(steps.lr(0, &optimizer), 5e-6);
        assert!((steps.lr(195, &optimizer) - 2.5e-6).abs() < 1e-18);
        let last = 5e-6 * 0.5 * (1.0 + (std::f64::consts::PI * 389.0 / 390.0).cos());
        assert!((steps.lr(389, &optimizer) - last).abs() < 1e-18);
    }

    #[test]
    fn warm_up_rises_from_zero() {
        let (linear, optimizer) = steps(
            10,
            &[
                "train.batch=1",
                "train.epochs=2",
                "optimizer.warmup_ratio=0.11",
                "optimizer.schedule=linear",
                "optimizer.lr=1.0",
            ],
        );
        assert_eq!(linear, Steps { per_epoch: 10, total: 20, warmup: 3 });
        let rates: Vec<f64> = (0..20).map(|k| linear.lr(k, &optimizer)).collect();
        assert_eq!(&rates[..4], &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]);
        assert!((rates[19] - 1.0 / 17.0).abs() < 1e-15);
        let (constant, optimizer) =
            steps(10, &["train.max_steps=5", "optimizer.warmup_steps=2", "optimizer.schedule=constant"]);
        assert_eq!(constant.total, 5);
        assert_eq!(constant.lr(4, &optimizer), 5e-6);
    }
}
