--- What policies have to say about resources. Without the part that has policies, nothing.
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

local ENGINE = "symphony.policy.engine"

local function engine()
  if package.loaded[ENGINE] or package.searchpath(ENGINE, package.path) then return require(ENGINE) end
end

--- Node ids, best first, that a policy chooses for a resource of @kind; nil: none has an opinion. @input: {resource,
--- candidates, want, current}. In a task.
function M.place(kind, input)
  local found = engine()
  if not found then return nil end
  return found.place(kind, input)
end

--- May this change of a resource be? @change: {kind, key, action, old, new, old_revision, who}. Returns the document as
--- policies want it (@change.new when none amends it), the compares of what they have seen, and the trace. Raises
--- "denied" when one refuses. In a task.
function M.admit(change)
  local found = engine()
  if not found then return change.new, {}, nil end
  local decision, compares, trace = found.admit_change(change)
  if type(decision) == "table" and decision.refuse then
    local err = errors.new("denied", tostring(decision.refuse), decision.policy
      and ("the policy %s refuses this"):format(decision.policy) or nil)
    err.trace = trace
    error(err, 0)
  end
  local new = change.new
  if new and type(decision) == "table" and type(decision.amend) == "table" then
    local amended = {}
    for k, v in pairs(new) do amended[k] = v end
    for k, v in pairs(decision.amend) do amended[k] = v ~= json.null and v or nil end
    new = amended
  end
  return new, compares or {}, trace
end

return M
