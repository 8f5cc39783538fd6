--- Figures of raft: the leader, the others, the log, the disk. Nothing on a node that has none.
local metrics = require "symphony.metrics"
local nodes = require "symphony.metrics.nodes"
local raft = require "sym.raft"

local counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram

local M = {}

local function leadership(s, stats)
  return {
    gauge("symphony_raft_is_leader", "1 while this manager leads.", s.state == "leader"),
    gauge("symphony_raft_has_leader", "1 while this manager knows a leader.", s.leader ~= 0),
    gauge("symphony_raft_leader_id", "Raft id of the leader; 0: none is known.", s.leader),
    gauge("symphony_raft_has_quorum",
      "1 while a majority of the voters is heard of (on the leader), or a leader is known (elsewhere).", s.has_quorum),
    gauge("symphony_raft_term", "Term.", s.term),
    counter("symphony_raft_leader_changes_total", "Terms with a leader that were seen to begin.", stats.leaders),
    counter("symphony_raft_elections_total", "Elections that this manager has called.", stats.elections),
    gauge("symphony_raft_behind", "1 while this manager's state is older than what it has served before.", s.behind),
    gauge("symphony_raft_membership_changing", "1 while a change of the members is under way.", s.changing),
  }
end

local function log(s, stats)
  return {
    gauge("symphony_raft_last_index", "Index of the last entry of the log.", s.last_index),
    gauge("symphony_raft_commit_index", "Index up to which the log is known to be committed.", s.commit_index),
    gauge("symphony_raft_applied_index", "Index up to which the log has been applied to the state.", s.applied_index),
    gauge("symphony_raft_log_bytes", "Bytes of the log that are held in memory until a snapshot.", s.log_bytes),
    gauge("symphony_raft_snapshot_index", "Index of the last snapshot.", s.snapshot_index),
    gauge("symphony_raft_snapshot_bytes", "Size of the last snapshot taken since the start, before it is compressed.",
      stats.snapshot_bytes),
    histogram("symphony_raft_snapshot_duration_seconds", "Taking and writing a snapshot.", stats.snapshot_times),
    counter("symphony_raft_snapshots_installed_total", "Snapshots received from a leader.", stats.installed),
    histogram("symphony_raft_append_duration_seconds",
      "Writing entries to the log's disk: from giving them to it to their being on it.", stats.appends),
    counter("symphony_raft_appended_bytes_total", "Bytes of entries written to the log.", stats.appended),
    histogram("symphony_raft_commit_duration_seconds",
      "On the leader: from proposing an entry to having applied it, once a majority has it on disk.", stats.commits),
    gauge("symphony_raft_no_space", "1 while writes are refused for want of room, here or on another voter.",
      s.no_space),
    histogram("symphony_pool_wait_seconds",
      "What a job waits for a thread of the pool, which the disk shares; looked at once a second.", stats.pool_wait),
  }
end

local function load(stats)
  local txns = counter("symphony_raft_txns_total", "Txns begun at this manager, by how they ended.")
  for result, n in pairs(stats.ended) do txns:add(n, { result = result }) end
  table.sort(txns.samples, function(a, b) return a.labels.result < b.labels.result end)
  return {
    txns,
    gauge("symphony_raft_txns_pending", "Txns begun at this manager and not ended.", stats.txns_pending),
    counter("symphony_raft_txns_forwarded_total", "Txns that were passed on to the leader.", stats.forwarded),
    gauge("symphony_raft_txns_waiting", "On the leader: txns that wait for the next entry.", stats.txns_waiting),
    gauge("symphony_raft_txns_waiting_bytes", "Their size.", stats.txn_bytes_waiting),
    counter("symphony_raft_entries_proposed_total", "Entries with txns that this manager has proposed.", stats.packs),
    counter("symphony_raft_txns_proposed_total", "Txns in them.", stats.pack_txns),
    counter("symphony_raft_reads_total", "Linearizable reads begun at this manager.", stats.reads),
    counter("symphony_raft_read_failures_total", "Those of them that failed, for want of a quorum mostly.",
      stats.read_errors),
    gauge("symphony_raft_reads_pending", "Reads under way.", stats.reads_pending),
    counter("symphony_raft_read_rounds_total", "Rounds of confirmation that the leader has held for reads.",
      stats.read_rounds),
  }
end

local function peers(s)
  local members = gauge("symphony_raft_members", "Members by their role in raft.")
  local up = gauge("symphony_raft_peer_up",
    "1 while another member is connected and was heard of within an election timeout.")
  local silence = gauge("symphony_raft_peer_silence_seconds", "Since another member was last heard of.")
  local match = gauge("symphony_raft_peer_match_index", "On the leader: up to where a member is known to have the log.")
  local lag = gauge("symphony_raft_peer_lag_entries", "On the leader: entries of the log that a member lacks.")
  local disk = gauge("symphony_raft_disk_free_bytes", "Free bytes of a member's disk, as it last told.")
  local count = { voter = 0, standby = 0, spare = 0 }
  for _, server in ipairs(s.servers) do
    count[server.role] = count[server.role] + 1
    local label = { peer = server.id, name = nodes.name(server.id) or "", role = server.role }
    if server.disk_free > 0 then disk:add(server.disk_free, label) end
    if not server.is_self then
      up:add(server.up, label)
      silence:add(server.silent_ms and server.silent_ms / 1000, label)
      if s.state == "leader" then
        match:add(server.match_index, label)
        lag:add(math.max(0, s.last_index - server.match_index), label)
      end
    end
  end
  for _, role in ipairs { "voter", "standby", "spare" } do members:add(count[role], { role = role }) end
  return { members, up, silence, match, lag, disk }
end

function M.families()
  local s, stats = raft.status(), raft.stats()
  if not s or not stats or s.state == "down" then return nil end
  local all = {}
  for _, part in ipairs { leadership(s, stats), log(s, stats), load(stats), peers(s) } do
    table.move(part, 1, #part, #all + 1, all)
  end
  return all
end

function M.register()
  metrics.source("raft", M.families)
end

return M
