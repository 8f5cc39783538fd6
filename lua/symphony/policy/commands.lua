--- What reactions ask for: {do_ = "label", node, key, value (nil: away)}, {do_ = "availability", node, value},
--- {do_ = "kv.put", key, value}, {do_ = "kv.rm", key}, {do_ = "event", text}. Each is checked and carried out like a
--- change that somebody asks for: past the policies of admit.change, and told in the events with the policy's name.
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

-- Changes of nodes.
local function update(policy, name, patch)
  nodes.check_patch(patch)
  local admission = engine.admission()
  local answer, err = state.update(function()
    return nodes.update_txn(admission, name, patch, { kind = "policy", name = policy }, { policy = policy })
  end)
  if not answer then return nil, err end
  return answer
end

local function write(policy, op)
  local result, err = writes.submit({ compare = {}, ops = { op } }, { kind = "policy", name = policy })
  if result == writes.FORWARD then return nil, errors.new("not_leader", "this manager leads no longer") end
  return result, err
end

local kinds = {
  label = function(policy, c)
    local key, v = text(c, "key", "set_label"), value(c, "value")
    return update(policy, text(c, "node", "set_label"), { labels = { [key] = v == nil and json.null or v } })
  end,
  availability = function(policy, c)
    return update(policy, text(c, "node", "availability"), { availability = text(c, "value", "availability") })
  end,
  ["kv.put"] = function(policy, c)
    local key, v = kv.check_key(text(c, "key", "kv_put")), value(c, "value")
    if type(v) ~= "string" then errors.raise("invalid", "kv_put has no value that is a text") end
    return write(policy, { put = kv.PREFIX .. key, value = kv.check_value(v) })
  end,
  ["kv.rm"] = function(policy, c)
    return write(policy, { delete = kv.PREFIX .. kv.check_key(text(c, "key", "kv_rm")) })
  end,
  event = function(policy, c)
    return events.record { kind = "policy.event", policy = policy,
      message = text(c, "text", "event"):sub(1, EVENT_MAX) }
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

--- Carries out @command for the policy @policy, on the leader, in a task. true; nil, err: "invalid", what a policy of
--- admission refuses, and whatever a change can fail with.
function M.run(policy, command)
  local fn = type(command) == "table" and kinds[command.do_]
  if not fn then return nil, errors.new("invalid", "there is no such command") end
  local ok, result, err = xpcall(fn, errors.handler, policy, command)
  if not ok then return nil, result end
  if not result then return nil, err end
  return true
end

return M
