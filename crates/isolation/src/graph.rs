//! The order in which clusters speak, when some read what others wrote.

/// The nodes in an order in which each stands behind its inputs, the smallest first where there is a choice; or
/// the nodes of a cycle, each an input of the next and the last of the first.
///
/// `inputs[i]` are numbers of nodes.
pub(crate) fn order(inputs: &[Vec<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order = Vec::with_capacity(inputs.len());
    let mut placed = vec![false; inputs.len()];
    while order.len() < inputs.len() {
        let ready = |node: &usize| !placed[*node] && inputs[*node].iter().all(|&it| placed[it]);
        let Some(next) = (0..inputs.len()).find(ready) else {
            return Err(cycle(inputs, &placed));
        };
        placed[next] = true;
        order.push(next);
    }
    Ok(order)
}

/// A cycle among the nodes that were not placed, each of which has an input that was not.
fn cycle(inputs: &[Vec<usize>], placed: &[bool]) -> Vec<usize> {
    let mut walk = Vec::new();
    let mut node = placed.iter().position(|it| !it).unwrap_or(0);
    while !walk.contains(&node) {
        walk.push(node);
        let before = inputs[node].iter().copied().find(|&it| !placed[it]);
        node = before.unwrap_or(node);
    }
    let begin = walk.iter().position(|&it| it == node).unwrap_or(0);
    let mut cycle = walk.split_off(begin);
    // Walked from each node to an input of it.
    cycle.reverse();
    cycle
}
