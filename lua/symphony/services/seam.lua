--- What policies have to say about resources: where services and policies meet.
local engine = require "symphony.policy.engine"
local leader = require "symphony.cluster.leader"

local M = {}

--- The way of one change past the policies: begin() before each try; decide(hook, input) returns the input as they
--- amend it, or raises; bind(txn) makes the txn hold only if what they saw is as it was; trace, policies() and
--- amendments() tell who said what. See symphony/policy/engine.lua.
function M.admission() return engine.admission() end

--- Tells in the events that @err, from decide(), has refused @what (words).
function M.note_refusal(err, what) engine.note_refusal(err, what) end

--- Node ids, best first, that a policy chooses for a resource of @kind; nil: none has an opinion. @input: {resource,
--- candidates (those it is on by now are last), want = on how many it is to be, current = ids}. In a task.
function M.place(kind, input)
  if not engine.has("place." .. kind) then return nil end
  return (engine.place(kind, input))
end

--- Who asks, as policies are told: {kind, name, role}. @who from the router.
function M.asker(req, who) return leader.asker(req, who) end

return M
