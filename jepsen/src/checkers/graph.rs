//! The dependency graph between operations, and the search for cycles in it.
//!
//! Nodes are the sends, polls and transactions that ended `:ok` or `:info`. An edge says "came before":
//!
//! - **ww**: the writer of a value → the writer of the next value in the version order of its key;
//! - **wr**: the writer of a value → everyone who polled it;
//! - **process**: an operation → the next one of the same process;
//! - **realtime**: an operation that completed → everything that was invoked afterwards. There are n² of these; so each
//!   completion gets a *moment* (a node that is no operation), moments are chained in time, an operation leads to the moment of its
//!   completion, and the last moment before an invocation leads to that operation. An `:info` operation has no moment: it may
//!   take effect at any time later.
//!
//! If time and the logs agree, there is no cycle. Components are found by Tarjan's algorithm (without recursion), and in each a
//! short cycle by breadth-first search: O(n + edges).

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::analysis::{Analysis, OperationId};
use crate::history::{Action, Key, Kind, Value};

/// Why one operation came before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relation {
    /// It wrote the value before.
    Ww {
        /// In this key's log.
        key: Key,
        /// The first one's value.
        before: Value,
        /// The second one's value.
        after: Value,
    },
    /// It wrote what the other read.
    Wr {
        /// In this key's log.
        key: Key,
        /// The value.
        value: Value,
    },
    /// The same process did it before.
    Process,
    /// It was over before the other began.
    Realtime,
}

impl Relation {
    fn bit(self) -> u8 {
        match self {
            Self::Ww { .. } => WW,
            Self::Wr { .. } => WR,
            Self::Process => PROCESS,
            Self::Realtime => REALTIME,
        }
    }
}

/// Selects write-write edges.
pub const WW: u8 = 1;
/// Selects write-read edges.
pub const WR: u8 = 2;
/// Selects process order.
pub const PROCESS: u8 = 4;
/// Selects real-time order.
pub const REALTIME: u8 = 8;

/// How many edges of a component are tried as the beginning of a short cycle.
const STARTS_MAX: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Edge {
    from: u32,
    to: u32,
    relation: Relation,
}

/// A cycle: each operation came before the next by its relation, and the last before the first.
pub type Cycle = Vec<(OperationId, Relation)>;

/// The cycles of one class.
#[derive(Debug, Default)]
pub struct Cycles {
    /// In how many components there is one.
    pub count: usize,
    /// The first of them.
    pub cycles: Vec<Cycle>,
}

/// The graph.
pub struct Graph {
    /// Nodes below this are operations, by id; the others are moments.
    operations: usize,
    nodes: usize,
    /// Sorted by `from`.
    edges: Vec<Edge>,
    /// Where the edges of each node start; one more than there are nodes.
    starts: Vec<usize>,
}

impl Graph {
    pub(super) fn new(analysis: &Analysis<'_>) -> Self {
        let operations = analysis.history.operations().len();
        let mut builder = Builder { analysis, nodes: operations, edges: Vec::new() };
        builder.write_write();
        builder.write_read();
        builder.process_order();
        builder.realtime_order();
        let Builder { nodes, mut edges, .. } = builder;
        edges.sort_by_key(|edge| edge.from);
        let mut starts = vec![0; nodes + 1];
        for edge in &edges {
            starts[edge.from as usize + 1] += 1;
        }
        for node in 0..nodes {
            starts[node + 1] += starts[node];
        }
        Self { operations, nodes, edges, starts }
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// Finds cycles over the edges in `allowed` (bits) that have at least one of each kind in `needed`; of at most `limit` of the
    /// components that have one, the cycle itself.
    pub fn cycles(&self, analysis: &Analysis<'_>, allowed: u8, needed: u8, limit: usize) -> Cycles {
        let search = Search { graph: self, analysis, allowed };
        let component = search.components();
        // One pass gathers, for each component, the first few edges inside it that are of a needed kind.
        let rarest = [REALTIME, PROCESS, WR, WW].into_iter().find(|bit| needed & bit != 0).unwrap_or(allowed);
        let mut starts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, edge) in self.edges.iter().enumerate() {
            analysis.meter.add(1);
            let inside = component[edge.from as usize] == component[edge.to as usize];
            if inside && edge.relation.bit() & allowed & rarest != 0 {
                let of_component = starts.entry(component[edge.from as usize]).or_default();
                if of_component.len() < STARTS_MAX {
                    of_component.push(at);
                }
            }
        }
        let mut found = Cycles::default();
        for edges in starts.values() {
            let cycle =
                edges.iter().filter_map(|at| search.shortest_through(*at, &component, needed)).min_by_key(Vec::len);
            if let Some(cycle) = cycle {
                found.count += 1;
                if found.cycles.len() < limit {
                    found.cycles.push(cycle);
                }
            }
        }
        found
    }

    fn edges_of(&self, node: u32) -> &[Edge] {
        &self.edges[self.starts[node as usize]..self.starts[node as usize + 1]]
    }
}

struct Builder<'a, 'h> {
    analysis: &'a Analysis<'h>,
    nodes: usize,
    edges: Vec<Edge>,
}

impl Builder<'_, '_> {
    fn add(&mut self, from: usize, to: usize, relation: Relation) {
        self.analysis.meter.add(1);
        if from != to {
            self.edges.push(Edge { from: from as u32, to: to as u32, relation });
        }
    }

    fn is_node(&self, id: OperationId) -> bool {
        let operation = self.analysis.operation(id);
        matches!(operation.outcome, Kind::Ok | Kind::Info)
            && matches!(self.analysis.event(id).action, Action::Send(_) | Action::Poll(_) | Action::Txn(_))
    }

    /// A value that stands at several offsets counts at its first; where the brokers disagree about an offset, the smallest value
    /// counts. Both are anomalies already, and need no cycle to be seen.
    fn write_write(&mut self) {
        for (key, log) in &self.analysis.keys {
            let mut last: Option<(OperationId, Value)> = None;
            for (index, slot) in log.slots.iter().enumerate() {
                let Some(sighting) = slot.sightings.first() else { continue };
                let after = sighting.value;
                let facts = self.analysis.facts(*key, after).map(|(_, facts)| facts);
                let first = facts.filter(|facts| facts.indices.is_some_and(|(first, _)| first == index));
                let Some(writer) = first.and_then(|facts| facts.writer).filter(|writer| self.is_node(*writer)) else {
                    continue;
                };
                if let Some((before_writer, before)) = last {
                    self.add(before_writer, writer, Relation::Ww { key: *key, before, after });
                }
                last = Some((writer, after));
            }
        }
    }

    fn write_read(&mut self) {
        for (key, log) in &self.analysis.keys {
            for facts in &log.values {
                let Some(writer) = facts.writer.filter(|writer| self.is_node(*writer)) else { continue };
                for reader in log.readers(facts) {
                    if self.is_node(*reader) {
                        self.add(writer, *reader, Relation::Wr { key: *key, value: facts.value });
                    }
                }
            }
        }
    }

    fn process_order(&mut self) {
        let mut last: Option<OperationId> = None;
        for &id in &self.analysis.by_process {
            let process = |id| self.analysis.event(id).process;
            if !self.is_node(id) {
                continue;
            }
            if let Some(before) = last.filter(|before| process(*before) == process(id)) {
                self.add(before, id, Relation::Process);
            }
            last = Some(id);
        }
    }

    fn realtime_order(&mut self) {
        let mut moment: Option<usize> = None;
        for event in self.analysis.history.events() {
            let id = self.analysis.history.operation_of(event.index);
            if !self.is_node(id) {
                continue;
            }
            match (event.kind, moment) {
                (Kind::Invoke, Some(moment)) => self.add(moment, id, Relation::Realtime),
                (Kind::Ok, before) => {
                    let new = self.nodes;
                    self.nodes += 1;
                    self.add(id, new, Relation::Realtime);
                    if let Some(before) = before {
                        self.add(before, new, Relation::Realtime);
                    }
                    moment = Some(new);
                }
                _ => {}
            }
        }
    }
}

struct Search<'g, 'a, 'h> {
    graph: &'g Graph,
    analysis: &'a Analysis<'h>,
    allowed: u8,
}

const UNSEEN: u32 = u32::MAX;

/// How a state of the search was reached.
struct Step {
    cost: usize,
    before: (u32, u8),
    edge: usize,
}

impl Search<'_, '_, '_> {
    /// Tarjan's strongly connected components: for each node the number of its component.
    fn components(&self) -> Vec<u32> {
        let nodes = self.graph.nodes;
        let (mut order, mut low, mut component) = (vec![UNSEEN; nodes], vec![0; nodes], vec![UNSEEN; nodes]);
        let (mut stack, mut calls): (Vec<u32>, Vec<(u32, usize)>) = (Vec::new(), Vec::new());
        let (mut next_order, mut next_component) = (0, 0);
        for root in 0..nodes as u32 {
            if order[root as usize] == UNSEEN {
                calls.push((root, 0));
            }
            while let Some((node, at)) = calls.pop() {
                self.analysis.meter.add(1);
                let here = node as usize;
                if at == 0 && order[here] == UNSEEN {
                    (order[here], low[here]) = (next_order, next_order);
                    next_order += 1;
                    stack.push(node);
                }
                if let Some(edge) = self.graph.edges_of(node).get(at) {
                    calls.push((node, at + 1));
                    let to = edge.to as usize;
                    if edge.relation.bit() & self.allowed == 0 {
                        continue;
                    }
                    if order[to] == UNSEEN {
                        calls.push((edge.to, 0));
                    } else if component[to] == UNSEEN {
                        low[here] = low[here].min(order[to]);
                    }
                    continue;
                }
                if let Some((parent, _)) = calls.last() {
                    low[*parent as usize] = low[*parent as usize].min(low[here]);
                }
                if low[here] == order[here] {
                    while let Some(member) = stack.pop() {
                        component[member as usize] = next_component;
                        if member == node {
                            break;
                        }
                    }
                    next_component += 1;
                }
            }
        }
        component
    }

    /// A closed walk of the fewest operations that begins with the edge at `start`, stays in its component and has every kind in
    /// `needed`. Breadth first over (node, kinds seen so far), where a step to a moment costs nothing.
    fn shortest_through(&self, start: usize, component: &[u32], needed: u8) -> Option<Cycle> {
        let first = self.graph.edges[start];
        let home = component[first.from as usize];
        let begin = (first.to, first.relation.bit() & needed);
        let mut reached: HashMap<(u32, u8), Step> =
            HashMap::from([(begin, Step { cost: 0, before: begin, edge: start })]);
        let mut queue = VecDeque::from([(0, begin)]);
        while let Some((cost, here @ (node, seen))) = queue.pop_front() {
            if node == first.from && seen == needed {
                return Some(self.walk_back(&reached, here, begin));
            }
            if reached[&here].cost < cost {
                continue;
            }
            for (offset, edge) in self.graph.edges_of(node).iter().enumerate() {
                self.analysis.meter.add(1);
                let bit = edge.relation.bit();
                if bit & self.allowed == 0 || component[edge.to as usize] != home {
                    continue;
                }
                let is_moment = edge.to as usize >= self.graph.operations;
                let (to, cost) = ((edge.to, seen | bit & needed), cost + usize::from(!is_moment));
                if reached.get(&to).is_none_or(|step| cost < step.cost) {
                    reached.insert(to, Step { cost, before: here, edge: self.graph.starts[node as usize] + offset });
                    if is_moment { queue.push_front((cost, to)) } else { queue.push_back((cost, to)) }
                }
            }
        }
        None
    }

    fn walk_back(&self, reached: &HashMap<(u32, u8), Step>, end: (u32, u8), begin: (u32, u8)) -> Cycle {
        let mut walk = Vec::new();
        let mut at = end;
        while at != begin {
            walk.push(reached[&at].edge);
            at = reached[&at].before;
        }
        walk.push(reached[&begin].edge);
        walk.reverse();
        self.cycle(&walk)
    }

    /// The operations of a closed walk. Moments vanish: what leads through them is one step of real time. The walk is turned so that
    /// it begins with the operation that was invoked first.
    fn cycle(&self, walk: &[usize]) -> Cycle {
        let steps = walk.iter().map(|at| self.graph.edges[*at]);
        let mut cycle: Cycle = steps
            .filter(|edge| (edge.from as usize) < self.graph.operations)
            .map(|edge| (edge.from as OperationId, edge.relation))
            .collect();
        let first = (0..cycle.len()).min_by_key(|at| cycle[*at].0).unwrap_or(0);
        cycle.rotate_left(first);
        cycle
    }
}
