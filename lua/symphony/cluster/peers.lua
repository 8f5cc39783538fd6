-- /peer/<node_id>: by which key a node is known to all others. Every node holds all of them; they are small, and change
-- only when a node comes or goes.
local crypto = require "sym.crypto"
local state = require "symphony.cluster.state"

local M = {}

M.PREFIX = "/peer/"

-- What is kept of node record @n, whose certificate says by its key. @info: that certificate's, where it is at hand.
-- Raises.
function M.record(n, info)
  info = info or assert(crypto.cert_info(n.certificate))
  return { key = crypto.base64(info.public), role = n.role }
end

-- The fingerprint that goes with @key (base64) as it is kept here, as certificates have it: hex. nil: it is damaged.
-- Pure.
function M.fingerprint(key)
  local spki = crypto.unbase64(key)
  return spki and crypto.hex(crypto.sha256(spki))
end

-- The parts of a txn that make node @n known, and forgotten.
function M.put(n, info)
  return state.put(M.PREFIX .. n.node_id, M.record(n, info))
end
function M.delete(node_id)
  return state.delete(M.PREFIX .. node_id)
end

-- For the leader of a cluster that was made when there was no gossip: the peers of the nodes that have none. In a task.
function M.complete()
  local rows = state.nodes()
  local ops = {}
  for _, kv in ipairs(rows or {}) do
    if not state.text(M.PREFIX .. kv.value.node_id) and #ops < 64 then ops[#ops + 1] = M.put(kv.value) end
  end
  if #ops > 0 then return state.submit { compare = {}, ops = ops } end
end

-- Every peer in the state: node id -> key (base64). nil, err.
function M.all()
  local rows, err = state.list(M.PREFIX)
  if not rows then return nil, err end
  local out = {}
  for _, kv in ipairs(rows) do out[kv.key:sub(#M.PREFIX + 1)] = kv.value.key end
  return out
end

return M
