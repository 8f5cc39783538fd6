--- What policies have to say about resources. Without the part that has policies, nothing.
local json = require "symphony.json"

local M = {}

local ENGINE = "symphony.policy.engine"

local function engine()
  if package.loaded[ENGINE] or package.searchpath(ENGINE, package.path) then return require(ENGINE) end
end

-- Stands for an admission where there are no policies: everything may be as it is.
local Open = {
  begin = function() end,
  decide = function(_, _, input) return input end,
  bind = function() end,
  policies = function() return nil end,
  amendments = function() return "" end,
}
Open.__index = Open

--- The way of one change past the policies: begin() before each try; decide(hook, input) returns the input as they
--- amend it, or raises; bind(txn) makes the txn hold only if what they saw is as it was; trace, policies() and
--- amendments() tell who said what. See symphony/policy/engine.lua.
function M.admission()
  local found = engine()
  return found and found.admission() or setmetatable({ trace = json.array {} }, Open)
end

--- Tells in the events that @err, from decide(), has refused @what (words).
function M.note_refusal(err, what)
  local found = engine()
  if found then found.note_refusal(err, what) end
end

--- Node ids, best first, that a policy chooses for a resource of @kind; nil: none has an opinion. @input: {resource,
--- candidates, want, current}. In a task.
function M.place(kind, input)
  local found = engine()
  if found then return (found.place(kind, input)) end
end

--- Who asks, as policies are told: {kind, name, role}. @who from the router.
function M.asker(req, who)
  local leader = require "symphony.cluster.leader"
  if leader.asker then return leader.asker(req, who) end
  return { kind = who.kind == "control" and "control" or "certificate", name = who.id or (who.node and who.node.name),
    role = who.kind }
end

return M
