//! Schedules: the strength of steering as a function of the position in the answer.

use std::{f64::consts::PI, fmt, str::FromStr};

use crate::{Error, Result};

/// A factor on alpha, by the absolute step `t = max(0, p - (P - 1))` of the token at position `p`
/// after a prompt of `P` tokens: 0 for every prompt token, `j + 1` for generated token `j` (from 0) when
/// it is fed back.
///
/// It never depends on how often a hook ran, so chunks, drafts and beams change nothing.
///
/// ```
/// use mlxgk_steering::Schedule;
///
/// let schedule: Schedule = "warmup:4".parse()?;
/// assert_eq!([0, 1, 3, 9].map(|t| schedule.factor(t)), [0.25, 0.5, 1.0, 1.0]);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// 1.
    #[default]
    Constant,
    /// `min(1, (t + 1) / steps)`.
    Warmup {
        /// Steps until full strength; at least 1.
        steps: usize,
    },
    /// `clip((t - start) / (end - start), 0, 1)`.
    Ramp {
        /// The last step without steering.
        start: usize,
        /// The first step at full strength; after `start`.
        end: usize,
    },
    /// Half a cosine from 1 down to 0: `(1 + cos(π · min(1, t / steps))) / 2`.
    Cosine {
        /// Steps until 0; at least 1.
        steps: usize,
    },
    /// `exp(-t / tau)`.
    Decay {
        /// Steps in which the strength falls to 1/e; above 0.
        tau: f64,
    },
    /// 1 in the first `duty` share of every period, else 0.
    Pulse {
        /// Steps per period; at least 1.
        period: usize,
        /// Share of a period that is steered; above 0, at most 1.
        duty: f64,
    },
    /// Straight lines between `(t, factor)`, level before the first and after the last.
    Points(Vec<(usize, f64)>),
}

impl Schedule {
    /// The factor on alpha at step `t`. Of a schedule that [`check`](Self::check) refuses it is
    /// the limit of its formula: a length of 0 counts as the shortest there is.
    pub fn factor(&self, t: usize) -> f64 {
        let at = t as f64;
        match self {
            Self::Constant => 1.0,
            Self::Warmup { steps } => ((at + 1.0) / (*steps).max(1) as f64).min(1.0),
            Self::Ramp { start, end } if start < end => {
                let (start, end) = (*start as f64, *end as f64);
                ((at - start) / (end - start)).clamp(0.0, 1.0)
            }
            Self::Ramp { end, .. } => f64::from(t >= *end),
            Self::Cosine { steps } => {
                (1.0 + (PI * (at / (*steps).max(1) as f64).min(1.0)).cos()) / 2.0
            }
            Self::Decay { tau } if *tau > 0.0 => (-at / tau).exp(),
            Self::Decay { .. } => f64::from(t == 0),
            Self::Pulse { period, duty } => {
                let period = (*period).max(1);
                f64::from(((t % period) as f64) < duty * period as f64)
            }
            Self::Points(points) => between(points, at),
        }
    }

    /// Checks the numbers; parsing does so by itself.
    ///
    /// # Errors
    /// When a length is 0, a ramp ends before it starts, or points are missing or out of order.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::parameter(format!("the schedule {self} {what}")));
        match self {
            Self::Warmup { steps: 0 } | Self::Cosine { steps: 0 } => {
                refuse("needs at least 1 step")
            }
            Self::Ramp { start, end } if start >= end => refuse("must end after it starts"),
            Self::Decay { tau } if !(tau.is_finite() && *tau > 0.0) => {
                refuse("needs a finite tau above 0")
            }
            Self::Pulse { period: 0, .. } => refuse("needs a period of at least 1 step"),
            Self::Pulse { duty, .. } if !(*duty > 0.0 && *duty <= 1.0) => {
                refuse("needs a duty above 0 and at most 1 (a share of the period)")
            }
            Self::Points(points) if points.is_empty() => refuse("needs at least one point"),
            Self::Points(points) if points.windows(2).any(|it| it[0].0 >= it[1].0) => {
                refuse("needs points in the order of their steps")
            }
            Self::Points(points) if points.iter().any(|it| !it.1.is_finite()) => {
                refuse("needs finite factors")
            }
            _ => Ok(()),
        }
    }
}

fn between(points: &[(usize, f64)], at: f64) -> f64 {
    let after = points.partition_point(|&(t, _)| (t as f64) <= at);
    match (after.checked_sub(1).map(|it| points[it]), points.get(after)) {
        (Some((t0, a0)), Some(&(t1, a1))) => {
            let (t0, t1) = (t0 as f64, t1 as f64);
            a0 + (a1 - a0) * (at - t0) / (t1 - t0)
        }
        (Some((_, level)), None) | (None, Some(&(_, level))) => level,
        (None, None) => 1.0,
    }
}

/// The spelling of the command line.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Warmup { steps } => write!(f, "warmup:{steps}"),
            Self::Ramp { start, end } => write!(f, "ramp:{start}:{end}"),
            Self::Cosine { steps } => write!(f, "cosine:{steps}"),
            Self::Decay { tau } => write!(f, "decay:{tau}"),
            Self::Pulse { period, duty } => write!(f, "pulse:{period}:{duty}"),
            Self::Points(points) => {
                let points: Vec<String> = points.iter().map(|(t, a)| format!("{t}={a}")).collect();
                write!(f, "points:{}", points.join(","))
            }
        }
    }
}

/// `constant`, `warmup:N`, `ramp:START:END`, `cosine:N`, `decay:TAU`, `pulse:PERIOD:DUTY` or
/// `points:T=A,T=A,...`.
impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(a, b)| (a, Some(b)));
        let wrong = || {
            Error::parameter(format!(
                "unknown schedule {text:?}; expected constant, warmup:N, ramp:START:END, cosine:N, \
                 decay:TAU, pulse:PERIOD:DUTY or points:T=A,T=A,..."
            ))
        };
        let count = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
        let fields: Vec<&str> = rest.map(|it| it.split(':').collect()).unwrap_or_default();
        let schedule = match (name, fields.as_slice()) {
            ("constant", []) => Self::Constant,
            ("warmup", [steps]) => Self::Warmup { steps: count(steps)? },
            ("ramp", [start, end]) => Self::Ramp { start: count(start)?, end: count(end)? },
            ("cosine", [steps]) => Self::Cosine { steps: count(steps)? },
            ("decay", [tau]) => Self::Decay { tau: number(tau)? },
            ("pulse", [period, duty]) => {
                Self::Pulse { period: count(period)?, duty: number(duty)? }
            }
            ("points", [points]) => Self::Points(
                points
                    .split(',')
                    .map(|point| {
                        let (t, a) = point.split_once('=').ok_or_else(wrong)?;
                        Ok((count(t)?, number(a)?))
                    })
                    .collect::<Result<_>>()?,
            ),
            _ => return Err(wrong()),
        };
        schedule.check()?;
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(text: &str, steps: &[usize]) -> Vec<f64> {
        let schedule: Schedule = text.parse().unwrap();
        assert_eq!(schedule.to_string(), text);
        steps.iter().map(|&t| (schedule.factor(t) * 1e4).round() / 1e4).collect()
    }

    #[test]
    fn every_schedule_by_its_formula() {
        assert_eq!(factors("constant", &[0, 7]), [1.0, 1.0]);
        assert_eq!(factors("warmup:5", &[0, 3, 4, 5]), [0.2, 0.8, 1.0, 1.0]);
        assert_eq!(factors("ramp:2:6", &[0, 2, 3, 6, 9]), [0.0, 0.0, 0.25, 1.0, 1.0]);
        assert_eq!(factors("cosine:4", &[0, 2, 4, 9]), [1.0, 0.5, 0.0, 0.0]);
        assert_eq!(factors("decay:2", &[0, 2]), [1.0, 0.3679]);
        assert_eq!(factors("pulse:4:0.5", &[0, 1, 2, 3, 4]), [1.0, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(factors("points:2=1,4=-1", &[0, 2, 3, 4, 8]), [1.0, 1.0, 0.0, -1.0, -1.0]);
    }

    #[test]
    fn a_schedule_that_is_not_valid_has_finite_factors_all_the_same() {
        use Schedule::{Cosine, Decay, Points, Pulse, Ramp, Warmup};
        for (schedule, expected) in [
            (Warmup { steps: 0 }, [1.0, 1.0, 1.0]),
            (Ramp { start: 3, end: 3 }, [0.0, 1.0, 1.0]),
            (Ramp { start: 5, end: 3 }, [0.0, 1.0, 1.0]),
            (Cosine { steps: 0 }, [1.0, 0.0, 0.0]),
            (Decay { tau: 0.0 }, [1.0, 0.0, 0.0]),
            (Decay { tau: f64::NAN }, [1.0, 0.0, 0.0]),
            (Pulse { period: 0, duty: 0.5 }, [1.0, 1.0, 1.0]),
            (Pulse { period: 2, duty: f64::NAN }, [0.0, 0.0, 0.0]),
            (Points(vec![]), [1.0, 1.0, 1.0]),
            (Points(vec![(3, 0.5), (3, 0.25)]), [0.5, 0.25, 0.25]),
        ] {
            assert!(schedule.check().is_err(), "{schedule}");
            assert_eq!([0, 3, 9].map(|t| schedule.factor(t)), expected, "{schedule}");
        }
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        for (text, word) in [
            ("", "unknown schedule"),
            ("warm:3", "unknown schedule"),
            ("warmup:0", "at least 1 step"),
            ("warmup:-1", "unknown schedule"),
            ("ramp:4:4", "end after"),
            ("decay:0", "tau"),
            ("decay:nan", "tau"),
            ("pulse:0:0.5", "period"),
            ("pulse:4:2", "duty"),
            ("points:3=1,3=2", "order of their steps"),
            ("points:", "unknown schedule"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
