//! A steering as a name, by which a cache remembers what it was filled under.

use std::fmt::Write;

use crate::{Injection, Steering, SteeringVectors};

/// What is done, where and how strongly, and a digest of everything: steerings with the same name are
/// equal.
pub(crate) fn fingerprint(steering: &Steering) -> String {
    let parts: Vec<String> = steering.injections.iter().map(describe).collect();
    let mut digest = Digest::default();
    for injection in &steering.injections {
        digest.add(describe(injection).as_bytes());
        for (point, vector) in injection.vectors.iter().flat_map(SteeringVectors::iter) {
            digest.add(point.to_string().as_bytes());
            vector.iter().for_each(|it| digest.add(&it.to_bits().to_le_bytes()));
        }
        for (point, matrix) in &injection.matrices {
            digest.add(point.to_string().as_bytes());
            matrix.iter().for_each(|it| digest.add(&it.to_bits().to_le_bytes()));
        }
    }
    let mut name = parts.join(" + ");
    if let Some(budget) = steering.budget {
        // A string takes whatever is written.
        let _ = write!(name, ", KL up to {budget}");
    }
    digest.add(format!("{:?} {:?}", steering.conflict, steering.budget).as_bytes());
    format!("{name} ({:08x})", digest.0 as u32 ^ (digest.0 >> 32) as u32)
}

fn describe(injection: &Injection) -> String {
    let mut points = injection.vectors.iter().flat_map(SteeringVectors::iter).map(|it| it.0);
    let first = points.next().map_or_else(String::new, |it| it.to_string());
    let places = match points.max() {
        Some(last) => format!("{first} to {last}"),
        None => first,
    };
    let Injection { operation, alpha, positions, schedule, .. } = injection;
    format!("{operation} {alpha} at {places}, {positions}, {schedule}")
}

/// Fowler, Noll and Vo's hash, 1a, 64 bits: the same in every build, so that a name can be stored.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HookPoint;

    #[test]
    fn a_name_tells_steerings_apart() {
        let joy = |value| {
            let at = |layer| (HookPoint::ResidPost(layer), vec![value, 1.0]);
            SteeringVectors::new([at(1), at(3)]).unwrap()
        };
        let of = |value, alpha| Steering::from(Injection::new(joy(value), alpha));
        let name = fingerprint(&of(0.5, 1.5));
        let words = "add 1.5 at resid_post.1 to resid_post.3, all, constant (";
        assert!(name.starts_with(words), "{name}");
        assert_eq!(name, fingerprint(&of(0.5, 1.5)));
        assert_ne!(name, fingerprint(&of(0.25, 1.5)));
        assert_ne!(name, fingerprint(&of(0.5, 1.25)));
        assert_ne!(name, fingerprint(&of(0.5, 1.5).budget(0.1)));
    }
}
