-- What a command shows for --plan: what would become of a change, and what each policy says to it.
local json = require "symphony.json"

local M = {}

local function plain(v) return require("symphony.cli.render").plain(v) end

-- A row of a trace in words: "refuse: no more than one".
local function word(row)
  local decision = row.decision
  if row.error then return ("%s: %s"):format(row.said, plain(row.error)) end
  if row.said == "refuse" and type(decision) == "table" then return "refuse: " .. plain(decision.refuse) end
  if row.said == "nothing" or row.said == "allow" or type(decision) ~= "table" then return row.said end
  return ("%s: %s"):format(row.said, plain(json.encode(decision[row.said] or decision)))
end

-- The rows of @trace as lines, in the order in which the policies ran.
function M.trace_lines(trace)
  local lines, width = {}, 0
  for _, row in ipairs(trace) do width = math.max(width, #plain(row.policy)) end
  for _, row in ipairs(trace) do
    local time = math.type(row.us) and (" (%.1f ms)"):format(row.us / 1000) or ""
    lines[#lines + 1] = ("  %-" .. math.min(width, 63) .. "s  %s%s"):format(plain(row.policy), word(row), time)
  end
  return lines
end

local function text(answer)
  local lines = {}
  if answer.allow then
    lines[1] = "It would be done."
    for _, change in ipairs(answer.changes or {}) do lines[#lines + 1] = "  " .. plain(change) end
  else
    lines[1] = ("It would be refused: %s (%s)"):format(plain(answer.refuse), plain(answer.code))
  end
  lines[#lines + 1] = #answer.policies == 0 and "No policy has a word in it." or "What the policies say:"
  for _, line in ipairs(M.trace_lines(answer.policies)) do lines[#lines + 1] = line end
  return table.concat(lines, "\n")
end

-- How it is shown (render.result).
M.how = { text = text }

-- The same for a command in the client: asks the daemon.
function M.ask(ctx, method, path, body)
  local answer, err = ctx.call(method, path, body)
  if not answer then return nil, err end
  return answer, M.how
end

-- " (amended by policy a, b)" when a change was; else "".
function M.amended(answer)
  if not answer.policies then return "" end
  return (" (amended by policy %s)"):format(table.concat(answer.policies, ", "))
end

return M
