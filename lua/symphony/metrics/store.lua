--- Figures of the replicated state as this manager has it. Nothing on a node that has none.
local metrics = require "symphony.metrics"
local store = require "sym.store"

local counter, gauge = metrics.counter, metrics.gauge

local M = {}

local COUNT_MAX = 2000

function M.families()
  local s = store.stats()
  if not s then return nil end
  return {
    gauge("symphony_store_revision", "Revision of the state.", store.revision()),
    gauge("symphony_store_keys", "Keys of the state.", store.keys()),
    gauge("symphony_store_bytes", "Bytes of the state's file that have ever been in use.", s.bytes),
    gauge("symphony_store_quota_bytes", "What the state may take.", s.quota),
    gauge("symphony_store_headroom_bytes", "What can still be put before the quota.", store.headroom()),
    gauge("symphony_store_watches", "Open watches, those of symphony itself too.", s.watches),
    gauge("symphony_store_watches_paused", "Watches whose receiver is slower than the changes.", s.paused),
    counter("symphony_store_watches_cut_total",
      "Watches that were ended because the history that they needed was gone: too slow, or a snapshot came.", s.cut),
    counter("symphony_store_events_total", "Changes of keys.", s.events),
    counter("symphony_store_events_delivered_total", "How often a change was given to a watch.", s.delivered),
    gauge("symphony_store_history_events", "Changes that a watch can go back to.", s.history_events),
    gauge("symphony_store_history_bytes", "What they take.", s.history_bytes),
    gauge("symphony_tokens", "Join tokens, those that have expired lately too; counted up to 2,000.",
      store.count("/token/", COUNT_MAX)),
    gauge("symphony_pending_joins", "Requests to join that wait for an approval.", store.count("/pending/", COUNT_MAX)),
  }
end

function M.register()
  metrics.source("store", M.families)
end

return M
