--- What reactions ask for: {do_ = "label", node, key, value (nil: away)}, {do_ = "availability", node, value},
--- {do_ = "kv.put", key, value}, {do_ = "kv.rm", key}, {do_ = "event", text}. Each is checked and carried out like a
--- change that somebody asks for: past the policies of admit.change, and told in the events with the policy's name. The
--- change takes the command off the list (todo.lua), in one txn.
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local kv = require "symphony.cluster.kv"
local nodes = require "symphony.cluster.nodes"
local state = require "symphony.cluster.state"
local writes = require "symphony.policy.writes"

local M = {}

M.MAX = 32 -- commands of one reaction
local EVENT_MAX = 500 -- bytes of its text

local function text(command, name, what)
  local v = command[name]
  if type(v) ~= "string" or v == "" then errors.raise("invalid", ("%s has no %s"):format(what, name)) end
  return v
end

local function value(command, name)
  local v = command[name]
  if v == json.null then return nil end
  return v
end

-- state.update for build() -> txn or nil: nothing is to be changed. true; nil, err.
local function done(item, build)
  local answer, err = state.update(function()
    if item:is_gone() then return nil, "gone" end
    return item:take_off(build() or { compare = {}, ops = {} }), true
  end)
  if answer == "gone" then return nil, item.gone() end
  return answer, err
end

-- Changes of nodes.
local function update(item, name, patch)
  nodes.check_patch(patch)
  local admission, policy = engine.admission(), item.policy
  return done(item, function()
    local n = state.node(name)
    -- Nothing of it is changed any more, however often it is tried.
    if n and n.removing then errors.raise("removed", ("%s is being removed from the cluster"):format(n.name)) end
    return (nodes.update_txn(admission, name, patch, { kind = "policy", name = policy }, { policy = policy }))
  end)
end

local function write(item, op)
  local unchanged, off = item:off()
  local result, err = writes.submit({ compare = { unchanged }, ops = { op }, also = { off } },
    { kind = "policy", name = item.policy })
  if result == writes.FORWARD then return nil, errors.new("not_leader", "this manager leads no longer") end
  if result and result.status ~= "applied" then return nil, item.gone() end
  return result, err
end

local kinds = {
  label = function(item, c)
    local key, v = text(c, "key", "set_label"), value(c, "value")
    return update(item, text(c, "node", "set_label"), { labels = { [key] = v == nil and json.null or v } })
  end,
  availability = function(item, c)
    return update(item, text(c, "node", "availability"), { availability = text(c, "value", "availability") })
  end,
  ["kv.put"] = function(item, c)
    local key, v = kv.check_key(text(c, "key", "kv_put")), value(c, "value")
    if type(v) ~= "string" then errors.raise("invalid", "kv_put has no value that is a text") end
    return write(item, { put = kv.PREFIX .. key, value = kv.check_value(v) })
  end,
  ["kv.rm"] = function(item, c)
    return write(item, { delete = kv.PREFIX .. kv.check_key(text(c, "key", "kv_rm")) })
  end,
  event = function(item, c)
    local message = text(c, "text", "event"):sub(1, EVENT_MAX)
    return done(item, function()
      local txn = { compare = {}, ops = {} }
      events.add(txn, { kind = "policy.event", policy = item.policy, message = message })
      return txn
    end)
  end,
}

--- One command in words, for the log and for events.
function M.describe(c)
  local function clean(v) return json.clean(tostring(v):sub(1, 80)) end
  local what = type(c) == "table" and c.do_
  if what == "label" then
    local v = value(c, "value")
    return v == nil and ("no label %s on %s"):format(clean(c.key), clean(c.node))
      or ("label %s=%s on %s"):format(clean(c.key), clean(v), clean(c.node))
  elseif what == "availability" then
    return ("availability %s of %s"):format(clean(c.value), clean(c.node))
  elseif what == "kv.put" or what == "kv.rm" then
    return ("%s of key %s"):format(what == "kv.put" and "a put" or "a delete", clean(c.key))
  elseif what == "event" then
    return "an event"
  end
  return "a command that there is not"
end

--- Carries out @item (of todo.lua), on the leader, in a task. true; nil, err: "invalid", what a policy of admission
--- refuses, and whatever a change can fail with; "exists" when it was done meanwhile.
function M.run(item)
  local command = item.command
  local fn = type(command) == "table" and kinds[command.do_]
  if not fn then return nil, errors.new("invalid", "there is no such command") end
  local ok, result, err = xpcall(fn, errors.handler, item, command)
  if not ok then return nil, result end
  if not result then return nil, err end
  return true
end

return M
