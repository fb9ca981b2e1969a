//! The suite on the bundled model.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_genkit::{
    ComputeDtype, HookPoint, Model, NoHook, Prompt,
    steering::{Injection, Steering, SteeringVectors},
};
use mlxgk_validation::{Direction, Options, Reason, guarded, news_prompts, validate};

fn model() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

fn options(prompts: usize) -> Options {
    let mut options = Options::new(news_prompts().into_iter().take(prompts).collect());
    options.config.max_new_tokens = Some(12);
    options
}

fn steering(alpha: f64) -> Steering {
    let ones = SteeringVectors::new([(HookPoint::ResidPost(2), vec![0.1; 256])]).unwrap();
    Injection::new(ones.random_like(3).unwrap(), alpha).into()
}

#[test]
fn no_strength_is_no_distance() {
    let options = Options { alphas: vec![0.0], controls: false, ..options(3) };
    let report = validate(&model(), &steering(1.0), &options, |_| ()).unwrap();
    let [base, steered] = &report.cells[..] else { panic!("{report}") };
    assert_eq!((base.direction, base.kl, base.differs), (Direction::Base, None, None));
    assert_eq!((steered.kl, steered.top_1), (Some(0.0), Some(1.0)));
    assert_eq!((base.same, steered.same), (1.0, 1.0));
    // Their seeds are kept apart.
    assert!(steered.differs > Some(0.5), "{report}");
}

#[test]
fn distance_grows_with_strength() {
    let options = Options { alphas: vec![1.0, 8.0], ..options(3) };
    let report = validate(&model(), &steering(1.0), &options, |_| ()).unwrap();
    assert_eq!(report.cells.len(), 7);
    for direction in [Direction::Steered, Direction::Negated, Direction::Random] {
        let kl: Vec<f64> = report
            .cells
            .iter()
            .filter(|it| it.direction == direction)
            .filter_map(|it| it.kl)
            .collect();
        assert!(kl[0] > 0.0 && kl[1] > 2.0 * kl[0], "{report}");
    }
    let shift =
        |direction| report.cells.iter().rfind(|it| it.direction == direction).unwrap().shift;
    assert!(
        shift(Direction::Steered) > Some(1.0) && shift(Direction::Negated) < Some(-1.0),
        "{report}"
    );
}

#[test]
fn a_budget_is_measured_as_it_is_kept() {
    let mut options = Options { alphas: vec![12.0], controls: false, ..options(1) };
    options.config.max_new_tokens = Some(6);
    let model = model();
    let distance = |steering: Steering| {
        let report = validate(&model, &steering, &options, |_| ()).unwrap();
        assert_eq!(report.cells[1].same, 1.0, "{report}");
        report.cells[1].kl.unwrap()
    };
    let (free, bounded) = (distance(steering(1.0)), distance(steering(1.0).budget(0.01)));
    // Not of one step from a common cache, but of whole texts.
    assert!(bounded > 0.0 && bounded < 0.02 && free > 3.0 * bounded, "{free} and {bounded}");
    let same = distance(steering(1.0).budget(1e6));
    assert!((same - free).abs() < 1e-4 * free, "{same} and {free}");
}

#[test]
fn an_answer_equal_to_the_base_is_drawn_once_more() {
    let model = model();
    let prompts: Vec<Prompt> = news_prompts().into_iter().take(2).collect();
    let config = options(2).config;
    let first = guarded(&model, &prompts, &mut NoHook, &config, 7, None).unwrap();
    let again = guarded(&model, &prompts, &mut NoHook, &config, 7, Some(&first)).unwrap();
    for (at, (first, again)) in first.iter().zip(&again).enumerate() {
        assert_eq!(again.resampled, Some(Reason::SameAsBase));
        assert_eq!(again.sequence.prompt_index, at);
        assert_ne!(again.sequence.tokens, first.sequence.tokens);
    }
}

#[test]
fn nothing_to_run_is_an_error() {
    let model = model();
    for (options, words) in [
        (options(0), "no prompt"),
        (Options { alphas: vec![], ..options(1) }, "at least one alpha"),
        (Options { alphas: vec![f64::NAN], ..options(1) }, "finite"),
    ] {
        let error = validate(&model, &steering(1.0), &options, |_| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(validate(&model, &Steering::default(), &options(1), |_| ()).is_err());
}
