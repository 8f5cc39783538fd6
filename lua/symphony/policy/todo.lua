--- What reactions have asked for and what is not done yet, in the state, so that each thing is done once, whoever leads
--- and whatever fails on the way: that something has happened is marked in the txn that notes what is to be done about
--- it, and that is taken off the list in the txn that does it.
---
--- /reaction/<12 digits>/<2 digits>: {policy, hook, command, at (unix seconds)}, in the order in which it was noted.
--- /cluster/reactions, the mark: {revision, event = the last event of a node that was seen to; own = {[policy] =
--- {revision, event}}: the same of those that have not come so far, or farther; term = the last one whose leader was
--- told, told = to whom; times = {["policy/hook"] = when it was last due and led to something}; last = the number given
--- out last}.
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local MARK, PREFIX = "/cluster/reactions", "/reaction/"

--- The mark and its kv, from local state; nil: there is none yet. Raises.
function M.mark()
  local mark, kv = state.get(MARK)
  if not mark and kv then error(kv, 0) end
  return mark, kv
end

--- Notes that the policy @policy asks for the commands @list at @hook, once: take(mark) makes of the mark what it is
--- then, and returns false when somebody has done so before. Returns whether it was to be noted. In a task. Raises.
function M.note(policy, hook, list, take)
  return assert(state.update(function()
    local mark, kv = M.mark()
    local fresh = mark or {}
    if not take(fresh) then return nil, "taken" end
    local txn = { compare = { kv and state.unchanged(kv) or state.absent(MARK) }, ops = {} }
    if #list > 0 then fresh.last = (fresh.last or 0) + 1 end
    for i, command in ipairs(list) do
      table.insert(txn.ops, state.put(("%s%012d/%02d"):format(PREFIX, fresh.last, i), { policy = policy, hook = hook,
        command = command, at = math.floor(sys.now()) }))
    end
    table.insert(txn.ops, state.put(MARK, fresh))
    return txn, "noted"
  end)) == "noted"
end

local Item = {}
Item.__index = Item

--- What is to be done, in its order: {policy, hook, command, at} each. Raises.
function M.list()
  local out = {}
  for i, kv in ipairs(assert(state.list_raw(PREFIX))) do
    local item = json.decode(kv.value)
    out[i] = setmetatable(type(item) == "table" and item or {}, Item)
    out[i].kv = kv
  end
  return out
end

--- In state.update: true when somebody has done it already.
function Item:is_gone()
  local _, kv = state.text(self.kv.key)
  return not kv or kv.mod_revision ~= self.kv.mod_revision
end

--- The compare and the op that take it off the list, for the txn that does it.
function Item:off()
  return state.unchanged(self.kv), state.delete(self.kv.key)
end

--- Adds both to @txn.
function Item:take_off(txn)
  local compare, op = self:off()
  table.insert(txn.compare, compare)
  table.insert(txn.ops, op)
  return txn
end

--- The error of one that somebody has done meanwhile.
function Item.gone()
  return errors.new("exists", "it is done already")
end

--- Takes it off without doing it. @event: fields of the one that tells so, or nil. Raises.
function Item:drop(event)
  assert(state.update(function()
    if self:is_gone() then return nil, true end
    local txn = self:take_off { compare = {}, ops = {} }
    if event then events.add(txn, event) end
    return txn, true
  end))
end

return M
