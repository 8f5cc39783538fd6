-- How a node goes out of the state. One txn takes its record, and with it all that it may do; what it had to do, which
-- may be much, goes in pieces behind it. /removed/<node_id> stands for that until it is done, so that whoever leads
-- next goes on with it.
local events = require "symphony.cluster.events"
local keyring = require "symphony.cluster.keyring"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local MARK = "/removed/"
local PIECE = 100 -- deletes in a txn

-- The op that has whoever leads clear up behind node @n, for a txn that deletes its record; @also: more keys that go
-- then.
function M.mark(n, also)
  return state.put(MARK .. n.node_id, { at = math.floor(sys.now()), name = n.name, also = also })
end

-- Adds to @txn all that removes node @n (its record), and the event; @fields: more for that (message, reason). The txn
-- has to compare the record. Raises as events.add.
function M.add(txn, n, fields)
  local id = n.node_id
  for _, key in ipairs { "/node/" .. id, "/name/" .. n.name, "/fingerprint/" .. n.fingerprint, "/peer/" .. id,
    "/status/node/" .. id } do
    table.insert(txn.ops, state.delete(key))
  end
  if n.raft_node_id then table.insert(txn.ops, state.delete("/raft/" .. n.raft_node_id)) end
  table.insert(txn.ops, M.mark(n))
  keyring.wanted(txn.ops) -- whoever is out has known the gossip key
  local event = { kind = "node.removed", node = n }
  for name, value in pairs(fields) do event[name] = value end
  events.add(txn, event)
end

-- What is left of @id: at most PIECE deletes; with the last of them the mark goes, and what it names.
local function piece(id, mark)
  local rows, err = state.list_raw("/assign/" .. id .. "/", { limit = PIECE })
  if not rows then return nil, err end
  local txn = { compare = { state.absent("/node/" .. id) }, ops = {} }
  for i, kv in ipairs(rows) do txn.ops[i] = state.delete(kv.key) end
  if #rows < PIECE then
    for _, key in ipairs(mark.also or {}) do table.insert(txn.ops, state.delete(key)) end
    -- These once more: a word about it may have come late.
    for _, key in ipairs { "/peer/" .. id, "/status/node/" .. id, MARK .. id } do
      table.insert(txn.ops, state.delete(key))
    end
  end
  return state.submit(txn)
end

-- The leader's next step with what is left of removed nodes. True: there was something to do; nil, err.
function M.step()
  local rows, err = state.list(MARK, { limit = 1 })
  if not rows then return nil, err end
  if not rows[1] then return false end
  local done
  done, err = piece(rows[1].key:sub(#MARK + 1), rows[1].value)
  if not done then return nil, err end
  return true
end

return M
