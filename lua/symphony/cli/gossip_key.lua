-- symphony cluster gossip-key ...: the key of what nodes tell each other. Runs in the daemon; the leader answers.
local function call(method, path)
  return require("symphony.cluster.leader").call(method, path)
end

local rotate = {
  name = "rotate",
  summary = "Replace the gossip key by a new one",
  description = [[
Makes a new gossip key and has all nodes change to it, without a gap: first all accept it, then all
use it, then the old one is dropped. It goes on by itself; `gossip-key status` shows how far it is.
The removal of a node does the same.

Example:
  symphony cluster gossip-key rotate]],
  run = function()
    local answer, err = call("POST", "/v1/gossip-key/rotate")
    if not answer then return nil, err end
    return answer, { text = function()
      if answer.wanted then
        return ("A change to key %d is under way already; another one follows it."):format(answer.id)
      end
      return ("Key %d is given out. `symphony cluster gossip-key status` shows how far it is."):format(answer.id)
    end }
  end,
}

local PHASES = {
  idle = "All nodes use key %d.",
  accept = "Key %d is given out; it is used when all nodes accept it.",
  use = "Key %d is used; the old one is dropped when all nodes use it.",
}

local function describe(s)
  local lines = { PHASES[s.phase]:format(s.keys[#s.keys].id) }
  if #s.waits_for > 0 then lines[#lines + 1] = "Not yet: " .. table.concat(s.waits_for, ", ") end
  if s.wanted then lines[#lines + 1] = "Another change follows." end
  return table.concat(lines, "\n")
end

local status = {
  name = "status",
  summary = "How far a change of the gossip key is",
  description = [[
Shows which gossip key is in use, and during a change whom it waits for: a minute at most for each
step. Never shows a key.

Example:
  symphony cluster gossip-key status]],
  run = function()
    local answer, err = call("GET", "/v1/gossip-key")
    if not answer then return nil, err end
    return answer, { text = describe }
  end,
}

return { name = "gossip-key", summary = "The key of what nodes tell each other", commands = { rotate, status } }
