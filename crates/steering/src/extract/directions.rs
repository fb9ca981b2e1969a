//! The direction that separates two groups of activations, by six methods, in double precision.

use super::linear_algebra::{centered, combined, dot, gram, mean, principal, solve};
use crate::{Error, ErrorKind, Result, names::named};

/// How a direction is found from positive activations `H⁺` and negative ones `H⁻`, paired row by row;
/// `D = H⁺ - H⁻`. A bar is the mean over rows.
///
/// ```
/// use mlxgk_steering::extract::{Method, direction};
///
/// let positive = [vec![2.0, 1.0], vec![4.0, -1.0]];
/// let negative = [vec![-1.0, 1.0], vec![1.0, -1.0]];
/// let method: Method = "mean-diff".parse()?;
/// assert_eq!(method, Method::MeanDiff);
/// // Not of unit length: alpha 1 is the distance between the groups.
/// assert_eq!(direction(method, &positive, &negative)?.vector, [3.0, 0.0]);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// `mean(H⁺) - mean(H⁻)`: not normalised, so alpha 1 is the distance between the groups.
    #[default]
    MeanDiff,
    /// First principal component of `D - D̄`. It drops what all pairs have in common (repeng's
    /// `pca_diff`).
    PcaDiffCentered,
    /// First eigenvector of `DᵀD` (llama.cpp).
    PcaDiffUncentered,
    /// First principal component of `[D/2; -D/2]` (repeng's `pca_center`): the same direction as
    /// `PcaDiffUncentered`.
    PcaPairCentered,
    /// First principal component of `[H⁺; H⁻]` around their common mean.
    PcaGlobalCentered,
    /// Weights of a logistic regression between `D/2` and `-D/2`, without an intercept and with
    /// scikit-learn's penalty at `C = 1`.
    LogisticProbe,
}

named! { Method: "extraction method" {
    "mean-diff" => MeanDiff,
    "pca-diff-centered" => PcaDiffCentered,
    "pca-diff-uncentered" => PcaDiffUncentered,
    "pca-pair-centered" => PcaPairCentered,
    "pca-global-centered" => PcaGlobalCentered,
    "logistic-probe" => LogisticProbe,
} }

/// A direction and how much it explains.
///
/// ```
/// use mlxgk_steering::extract::{Method, direction};
///
/// // Half of what the pairs differ by lies along the first axis.
/// let positive = [vec![1.0, 0.0], vec![0.0, 1.0]];
/// let negative = [vec![0.0, 0.0], vec![0.0, 0.0]];
/// let found = direction(Method::MeanDiff, &positive, &negative)?;
/// assert_eq!(found.vector, [0.5, 0.5]);
/// assert!((found.explained_variance - 0.5).abs() < 1e-6);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// Of unit length, except for `mean-diff`.
    pub vector: Vec<f32>,
    /// `σ₁²/Σσ²` of the analysed matrix; for `mean-diff` and the probe, the share of `DᵀD` along the
    /// direction.
    pub explained_variance: f64,
}

/// The direction from `negative` to `positive`, whose rows are pairs. Its sign is fixed: most pairs
/// project higher on their positive side.
///
/// ```
/// use mlxgk_steering::extract::{Method, direction};
///
/// let positive = [vec![1.0, 0.1], vec![3.0, -0.1]];
/// let negative = [vec![-1.0, 0.0], vec![-3.0, 0.0]];
/// let found = direction(Method::PcaDiffUncentered, &positive, &negative)?;
/// assert!(found.vector[0] > 0.99 && found.explained_variance > 0.99);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
///
/// # Errors
/// When the groups are not of one size, there are fewer than two pairs, rows differ in length or are
/// not finite, or the groups do not differ.
pub fn direction(
    method: Method,
    positive: &[Vec<f32>],
    negative: &[Vec<f32>],
) -> Result<Direction> {
    let differences = differences(positive, negative)?;
    let (mut vector, explained) = match method {
        Method::MeanDiff => (mean(&differences), None),
        Method::PcaDiffCentered => principal(&centered(&differences))?,
        // `[D/2; -D/2]` has the mean 0, and `DᵀD/2` as its scatter.
        Method::PcaDiffUncentered | Method::PcaPairCentered => principal(&differences)?,
        Method::PcaGlobalCentered => {
            let rows = positive.iter().chain(negative);
            let rows: Vec<Vec<f64>> =
                rows.map(|row| row.iter().map(|&it| f64::from(it)).collect()).collect();
            principal(&centered(&rows))?
        }
        Method::LogisticProbe => (probe(&differences)?, None),
    };
    let length = dot(&vector, &vector).sqrt();
    let largest = differences.iter().map(|it| dot(it, it).sqrt()).fold(0.0, f64::max);
    if length.is_nan() || length <= 1e-12 * largest {
        let what = format!("{method} finds no direction: the two sides of the pairs do not differ");
        return Err(Error::new(ErrorKind::Pairs, what));
    }
    let along: Vec<f64> = differences.iter().map(|it| dot(it, &vector)).collect();
    let ahead = along.iter().filter(|&&it| it > 0.0).count();
    let behind = along.iter().filter(|&&it| it < 0.0).count();
    if behind > ahead || behind == ahead && along.iter().sum::<f64>() < 0.0 {
        vector.iter_mut().for_each(|it| *it = -*it);
    }
    let total: f64 = differences.iter().map(|it| dot(it, it)).sum();
    let share = along.iter().map(|it| it * it).sum::<f64>() / (length * length * total);
    if method != Method::MeanDiff {
        vector.iter_mut().for_each(|it| *it /= length);
    }
    let vector = vector.into_iter().map(|it| it as f32).collect();
    Ok(Direction { vector, explained_variance: explained.unwrap_or(share) })
}

fn differences(positive: &[Vec<f32>], negative: &[Vec<f32>]) -> Result<Vec<Vec<f64>>> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Pairs, what));
    let (count, other) = (positive.len(), negative.len());
    if count != other {
        return refuse(format!("{count} positive and {other} negative examples do not pair up"));
    }
    if count < 2 {
        return refuse(format!("a direction needs at least 2 pairs, but there are {count}"));
    }
    let width = positive[0].len();
    for (at, row) in positive.iter().chain(negative).enumerate() {
        let (pair, len) = (at % count, row.len());
        if len != width {
            return refuse(format!("pair {pair} has {len} values, but pair 0 has {width}"));
        }
        if row.iter().any(|it| !it.is_finite()) {
            return refuse(format!("pair {pair} holds a value that is not finite"));
        }
    }
    let difference = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
    };
    Ok(positive.iter().zip(negative).map(difference).collect())
}

/// `argmin ½‖w‖² + 2·Σ log(1 + exp(-wᵀd/2))`, by Newton's method on the weights of the rows, of which
/// `w` is a sum: `w = Σ a·d` with `a = σ(-wᵀd/2)` at the optimum.
fn probe(differences: &[Vec<f64>]) -> Result<Vec<f64>> {
    const MOST: usize = 100;
    let gram = gram(differences);
    let count = differences.len();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let margins = |a: &[f64]| gram.iter().map(|row| dot(row, a)).collect::<Vec<f64>>();
    let loss = |a: &[f64]| {
        let margins = margins(a);
        let log = |it: &f64| (-it / 2.0).max(0.0) + (-(it / 2.0).abs()).exp().ln_1p();
        dot(a, &margins) / 2.0 + 2.0 * margins.iter().map(log).sum::<f64>()
    };
    let mut a = vec![0.0; count];
    for _ in 0..MOST {
        let chances: Vec<f64> = margins(&a).iter().map(|it| sigmoid(-it / 2.0)).collect();
        let rest: Vec<f64> = a.iter().zip(&chances).map(|(a, chance)| chance - a).collect();
        if rest.iter().all(|it| it.abs() < 1e-12) {
            break;
        }
        let slopes: Vec<f64> = chances.iter().map(|it| it * (1.0 - it) / 2.0).collect();
        let entry = |row: usize, at: usize| slopes[row] * gram[row][at] + f64::from(row == at);
        let step = solve(count, entry, rest)?;
        let before = loss(&a);
        let mut share = 1.0;
        loop {
            let next: Vec<f64> = a.iter().zip(&step).map(|(a, step)| a + share * step).collect();
            if loss(&next) <= before || share < 1e-6 {
                a = next;
                break;
            }
            share /= 2.0;
        }
    }
    Ok(combined(differences, &a))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 24;

    /// A stream of numbers in -1..1.
    fn noise(state: &mut u64) -> f32 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Pairs whose sides differ by `shift` along axis 0 and vary by `spread` along axis 1, with a
    /// common variation of `common` along axis 2.
    fn pairs(shift: f32, spread: f32, common: f32) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mut state = 9;
        let mut side = |sign: f32, shared: f32| {
            let mut row: Vec<f32> = (0..WIDTH).map(|_| 0.02 * noise(&mut state)).collect();
            row[0] += sign * shift;
            row[1] += spread * noise(&mut state);
            row[2] += shared;
            row
        };
        let mut shared = 5;
        (0..40)
            .map(|_| {
                let common = common * noise(&mut shared);
                (side(1.0, common), side(-1.0, common))
            })
            .unzip()
    }

    fn cosine(found: &Direction, axis: usize) -> f64 {
        let length = found.vector.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt();
        f64::from(found.vector[axis]) / length
    }

    #[test]
    fn the_methods_differ_where_their_formulas_do() {
        let (positive, negative) = pairs(1.0, 0.8, 3.0);
        let along = |method, axis| cosine(&direction(method, &positive, &negative).unwrap(), axis);
        // What the pairs have in common is the answer of some, and dropped by others.
        assert!(along(Method::MeanDiff, 0) > 0.99);
        assert!(along(Method::PcaDiffUncentered, 0) > 0.99);
        assert!(along(Method::PcaPairCentered, 0) > 0.99);
        assert!(along(Method::LogisticProbe, 0) > 0.95);
        assert!(along(Method::PcaDiffCentered, 0).abs() < 0.1);
        assert!(along(Method::PcaDiffCentered, 1).abs() > 0.99);
        assert!(along(Method::PcaGlobalCentered, 2).abs() > 0.95);
    }

    #[test]
    fn sign_length_and_explained_variance() {
        let (positive, negative) = pairs(1.0, 0.1, 0.0);
        for name in Method::names() {
            let method: Method = name.parse().unwrap();
            let there = direction(method, &positive, &negative).unwrap();
            let back = direction(method, &negative, &positive).unwrap();
            let near = |a: &f32, b: &f32| (a + b).abs() < 1e-5;
            assert!(there.vector.iter().zip(&back.vector).all(|(a, b)| near(a, b)), "{method}");
            let length: f32 = there.vector.iter().map(|it| it * it).sum::<f32>().sqrt();
            let expected = if method == Method::MeanDiff { 2.0 } else { 1.0 };
            assert!((length - expected).abs() < 0.02, "{method}: {length}");
            if method != Method::PcaDiffCentered {
                assert!(there.explained_variance > 0.95, "{method}");
            }
            assert_eq!(method.to_string(), name);
        }
    }

    /// Power iteration needs some 1/gap rounds: more than anyone waits for where two eigenvalues
    /// are this close.
    #[test]
    fn nearly_equal_components_are_told_apart() {
        // Sums and differences of (1, 1) and (s, -s), all of them exact in fp32.
        let s = 1.0 - 1.0 / 65_536.0;
        let row = |a: f32, b: f32| {
            let mut row = vec![0.0_f32; WIDTH];
            (row[3], row[7]) = (a, b);
            row
        };
        let one = [row(1.0 + s, 1.0 - s), row(1.0 - s, 1.0 + s)];
        let positive: Vec<_> = one.iter().chain(&one).cloned().collect();
        let negative = vec![vec![0.0; WIDTH]; 4];
        let found = direction(Method::PcaDiffUncentered, &positive, &negative).unwrap();
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert!((found.vector[3] - half).abs() < 1e-6, "{found:?}");
        assert!((found.vector[7] - half).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn the_probe_solves_its_equation() {
        let (positive, negative) = pairs(0.3, 0.9, 0.0);
        let differences = differences(&positive, &negative).unwrap();
        let w = probe(&differences).unwrap();
        let pull: Vec<f64> =
            differences.iter().map(|it| 1.0 / (1.0 + (dot(it, &w) / 2.0).exp())).collect();
        let gradient = combined(&differences, &pull);
        assert!(w.iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    #[test]
    fn pairs_that_are_none_are_refused() {
        let row = || vec![1.0, 2.0];
        for (positive, negative, words) in [
            (vec![row(), row()], vec![row()], "2 positive and 1 negative examples"),
            (vec![row()], vec![row()], "at least 2 pairs"),
            (vec![row(), vec![1.0]], vec![row(), row()], "pair 1 has 1 values"),
            (vec![row(), row()], vec![row(), vec![f32::NAN, 0.0]], "pair 1 holds a value"),
            (vec![row(), row()], vec![row(), row()], "do not differ"),
        ] {
            let error = direction(Method::MeanDiff, &positive, &negative).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
