--- Figures of gossip: what this node takes the others for, and what it hears. Nothing while it does not speak.
local gossip = require "symphony.cluster.gossip"
local metrics = require "symphony.metrics"

local counter, gauge = metrics.counter, metrics.gauge

local M = {}

local STATES = { "alive", "suspect", "dead", "left" }
-- Why a datagram is not even opened, and why what was in one, or a claim in it, is not believed.
local REFUSED = { "malformed", "reflected", "stranger", "unknown_key", "replayed", "busy", "forged", "no_room" }
local DISBELIEVED = { malformed = "malformed", stranger = "strangers", bad_signature = "bad_signatures",
  too_often = "claims_deferred" }

local function reasons(s)
  local refused = counter("symphony_gossip_refused_total", "Datagrams that were refused unopened, by reason.")
  for _, reason in ipairs(REFUSED) do refused:add(s["seal_" .. reason], { reason = reason }) end
  local disbelieved = counter("symphony_gossip_disbelieved_total",
    "Authentic datagrams, or claims in them, that were not believed, by reason.")
  for _, reason in ipairs { "malformed", "stranger", "bad_signature", "too_often" } do
    disbelieved:add(s[DISBELIEVED[reason]], { reason = reason })
  end
  local unsent = counter("symphony_gossip_unsent_total", "Datagrams that the system did not send, by reason.")
  unsent:add(s.out_full, { reason = "full" }):add(s.out_failed, { reason = "failed" })
  return refused, disbelieved, unsent
end

function M.families()
  local s = gossip.stats()
  if not s then return nil end
  local members = gauge("symphony_gossip_members", "Nodes, this one too, by what this one takes them for.")
  for _, state in ipairs(STATES) do members:add(s["members_" .. state], { state = state }) end
  local refused, disbelieved, unsent = reasons(s)
  return {
    members, refused, disbelieved, unsent,
    gauge("symphony_gossip_health",
      "Lifeguard's local health: 0 is well; the higher, the less this node trusts its own view.", s.health),
    gauge("symphony_gossip_known_nodes", "Nodes of whom this one has the key.", s.peers),
    gauge("symphony_gossip_keys_of_others", "Gossip keys that others have spoken with in the last minute.",
      s.keys_of_others),
    counter("symphony_gossip_datagrams_received_total", "Datagrams received.", s["in"]),
    counter("symphony_gossip_received_bytes_total", "Bytes of datagrams received.", s.in_bytes),
    counter("symphony_gossip_datagrams_sent_total", "Datagrams sent.", s.out),
    counter("symphony_gossip_sent_bytes_total", "Bytes of datagrams sent.", s.out_bytes),
    counter("symphony_gossip_dropped_by_system_total",
      "Datagrams that the system dropped for want of room in the socket's buffer.", s.system_dropped),
    counter("symphony_gossip_pauses_total",
      "How often the time that refused datagrams may take was used up, and listening paused.", s.pauses),
    counter("symphony_gossip_probes_total", "Probes of other nodes.", s.probes),
    counter("symphony_gossip_probes_indirect_total", "Probes for which others were asked to help.", s.probes_indirect),
    counter("symphony_gossip_probes_failed_total", "Probes without an answer by any way.", s.probes_failed),
    counter("symphony_gossip_refutations_total", "How often this node had to say that it is alive after all.",
      s.refutations),
    counter("symphony_gossip_stalls_total", "Ticks of gossip that came late: this process was not let run.", s.stalls),
    counter("symphony_gossip_stalled_seconds_total", "How late all of them were together.", s.stalled_ms / 1000),
  }
end

function M.register()
  metrics.source("gossip", M.families)
end

return M
